/* VALID: does a plan hold under every disturbance and estimate error that the certificate assumes?
 *
 * Above this text stand linear.c and zonotope.c.
 *
 * Plan: z_0, u_0..u_N with z_{j+1} = F(z_j, u_j). While it is followed the input of period j >= 1
 * is u_j + K (x_hat [-] z_j), so the error e = x [-] z_j obeys, to first order,
 *     e+ = (A_j + B_j K) e + noise + remainder + disturbance,
 * and stays in the zonotope Z(G_j) = { G_j l : |l_i| <= 1 }:
 *     G_0 = diag(prediction_error),   G_{j+1} = [ (A_j + B_j K) G_j , diag(w_j) ].
 * E_j and V_j bound error and input deviation. docs/theory.md states every inequality.
 * Generators are columns; a set of them may be replaced by the box around it (reduce).
 */

/* Second-order remainder of the error map over |xi| <= (E, V, disturbance) in one cell. */
static void remainder_bound(const Tables *tables, int cell, const double *xi, double *r) {
  double product[(2 * NE + NU) * (2 * NE + NU + 1) / 2];
  const Quadratic *q = &tables->remainder;
  const double *c = q->c + cell * tables->cell_size;
  for (int p = 0; p < tables->pairs; p++)
    product[p] = xi[tables->pair_a[p]] * xi[tables->pair_b[p]];
  for (int i = 0; i < NE; i++) {
    double even = 0.0, odd = 0.0;
    int k = q->start[i];
    for (; k + 1 < q->start[i + 1]; k += 2) {
      even += c[k] * product[q->pair[k]];
      odd += c[k + 1] * product[q->pair[k + 1]];
    }
    if (k < q->start[i + 1]) even += c[k] * product[q->pair[k]];
    r[i] = even + odd;
  }
}

/* What the remainder, the disturbance and the tracker's noise add in one period: w (NE). */
static void added(const Bounds *bounds, const Tables *tables, int cell, const double *noise,
                  const double *width, const double *deviation, double factor, double *w) {
  double xi[2 * NE + NU];
  for (int i = 0; i < NE; i++) xi[i] = width[i];
  for (int i = 0; i < NU; i++) xi[NE + i] = deviation[i];
  for (int i = 0; i < NE; i++) xi[NE + NU + i] = factor * bounds->disturbance[i];
  remainder_bound(tables, cell, xi, w);
  for (int i = 0; i < NE; i++) w[i] += factor * (bounds->disturbance[i] + noise[i]) + EPS;
}

/* g <- [moved g, diag(w)], the product standing in g_next with its row sums. */
static int advance(Work *work, int columns, const double *sums, const double *w, double *width) {
  double *moved = work->g_next;
  work->g_next = work->g;
  work->g = moved;
  for (int i = 0; i < NE; i++) width[i] = sums[i] + w[i];
  return append_box(work->g, (int)work->capacity, columns, w);
}

/* Room for two more boxes, by order reduction if need be. */
static int make_room(const Work *work, int columns, const double *width) {
  const int stride = (int)work->capacity, spare = stride / 8 > 2 * NE ? stride / 8 : 2 * NE;
  if (columns + NE <= stride) return columns;
  return reduce(work->g, stride, columns, stride - spare, width, work->score);
}

static int start_at(const Work *work, const double *box, double factor, double *width) {
  for (int i = 0; i < NE; i++) width[i] = factor * box[i];
  return append_box(work->g, (int)work->capacity, 0, width);
}

/* V0 at node j: may the derived bounds be used here? Its rooms count only where they are left. */
static int inside_domain(const Bounds *bounds, const Work *work, int j, int last,
                         const double *width, const double *deviation, double *least,
                         int *worst) {
  int row = j * PER_NODE + NH + 2 * NU, inside = 1;
  for (int i = 0; i < NE; i++) {
    double room = bounds->error_domain[i] - width[i];
    if (room >= 0.0) continue;
    inside = 0;
    keep_least(room, row + i, least, worst);
  }
  for (int i = 0; i < NU && !last; i++) {
    double room = (bounds->input_domain[i] - deviation[i]) / bounds->scale[i];
    if (room >= 0.0) continue;
    inside = 0;
    keep_least(room, row + NE + i, least, worst);
  }
  if (work->cell[j] >= 0) return inside;
  keep_least(work->outside[j], row + NE + NU + work->outside_row[j], least, worst);
  return 0;
}

/* V2 and, but for the last node, whose input is not used, V3. */
static void node_conditions(const Bounds *bounds, const Tables *tables, const Work *work, int j,
                            int last, double factor, const double *reach,
                            const double *width, const double *deviation, double *least,
                            int *worst) {
  const double *u = work->inputs + j * NU;
  double *need = work->need + j * NH;
  for (int i = 0; i < NH; i++) {
    const Quadratic *q = &tables->safe;
    need[i] = reach[i];
    for (int k = q->start[i]; k < q->start[i + 1]; k++)
      need[i] += q->c[k] * width[tables->safe_a[k]] * width[tables->safe_b[k]];
    need[i] += bounds->sampling[i] * (factor > 1.0 ? factor : 1.0);
    keep_least(work->h[j * NH + i] - need[i], j * PER_NODE + i, least, worst);
  }
  for (int i = 0; i < NU && !last; i++) {
    int row = j * PER_NODE + NH + i;
    double below = u[i] - deviation[i] - bounds->low[i];
    double above = bounds->high[i] - deviation[i] - u[i];
    keep_least(below / bounds->scale[i], row, least, worst);
    keep_least(above / bounds->scale[i], row + NU, least, worst);
  }
}

/* V4 and V5. */
static void end_conditions(const Bounds *bounds, const Tables *tables, const Work *work, int N,
                           int columns, const double *width, double *least, int *worst) {
  const Terminal *end = (const Terminal *)work->terminal;
  double sums[NE], rest[NE], tube = 0.0, curved = 0.0;
  int row = (N + 1) * PER_NODE;
  reaches(end->map, NE, work->g, (int)work->capacity, columns, sums);
  for (int r = 0; r < NE; r++) {
    rest[r] = 0.0;
    for (int a = 0; a < NE; a++)
      for (int b = 0; b < NE; b++)
        rest[r] += tables->shift[(r * NE + a) * NE + b] * width[a] * width[b];
  }
  for (int i = 0; i < NE; i++) {
    double y = 0.0;
    for (int r = 0; r < NE; r++) y += fabs(bounds->factor[r * NE + i]) * rest[r];
    tube += sums[i] * sums[i];
    curved += y * y;
  }
  double need = sqrt(tube) + sqrt(curved) + EPS;
  work->need[(N + 1) * NH] = need;
  keep_least(1.0 - end->length - need, row++, least, worst);
  for (int i = 0; i < NE; i++, row++) {
    double room = bounds->base_extent[i] - fabs(end->error[i]) - width[i];
    if (!(room >= 0.0)) keep_least(room, row, least, worst);
  }
  for (int i = 0; i < NH; i++) keep_least(end->room[i], row++, least, worst);
  if (!(end->drift <= EPS)) keep_least(EPS - end->drift, row, least, worst);
}

/* The least room over all conditions of the linearised plan, errors scaled by `factor`. Stops at
 * the first node that leaves the domain of the derived bounds. */
EXPORT double safe_rl_tube(const Bounds *bounds, const Tables *tables, Work *work, int N,
                           double factor, int *worst) {
  const int stride = (int)work->capacity;
  double width[NE], w[NE], deviation[NU], steady[NU], reach[NH], sums[NE], least = INFINITY;
  *worst = -1;
  for (int i = 0; i < (N + 1) * NE; i++) work->errors[i] = INFINITY;
  for (int i = 0; i < (N + 1) * NU; i++) work->deviations[i] = INFINITY;
  for (int i = 0; i < NU; i++) {
    steady[i] = 0.0;
    for (int c = 0; c < NE; c++)
      steady[i] += factor * fabs(bounds->gain[i * NE + c]) * bounds->tracking[c];
  }
  int columns = start_at(work, bounds->prediction, factor, width);
  for (int j = 0; j <= N; j++) {
    columns = make_room(work, columns, width);
    reaches(bounds->gain, NU, work->g, stride, columns, deviation);
    reaches(work->slope + j * NH * NE, NH, work->g, stride, columns, reach);
    for (int i = 0; i < NU; i++) deviation[i] = j > 0 ? deviation[i] + steady[i] : 0.0;
    memcpy(work->errors + j * NE, width, sizeof width);
    memcpy(work->deviations + j * NU, deviation, sizeof deviation);
    int last = j == N;
    int inside = inside_domain(bounds, work, j, last, width, deviation, &least, worst);
    node_conditions(bounds, tables, work, j, last, factor, reach, width, deviation, &least,
                    worst);
    if (!inside) return least;
    if (j == N) break;
    product(work->closed + j * NE * NE, work->g, stride, columns, work->g_next, sums);
    added(bounds, tables, work->cell[j], work->noise + j * NE, width, deviation, factor, w);
    columns = advance(work, columns, sums, w, width);
  }
  end_conditions(bounds, tables, work, N, columns, width, &least, worst);
  if (factor != 1.0) return least;
  const int rows = (N + 1) * NH + 1;
  memcpy(work->kept, work->need, rows * sizeof(double));
  memcpy(work->kept + rows, work->deviations, (N + 1) * NU * sizeof(double));
  return least;
}

/* z_0..z_N; the inputs after the first are the backup policy's, or those in `work`. */
EXPORT double safe_rl_valid(const Bounds *bounds, const Tables *tables, Work *work, int N,
                            const double *x, const double *u, int *worst) {
  memcpy(work->states, x, NX * sizeof(double));
  if (u) memcpy(work->inputs, u, NU * sizeof(double));
  for (int j = 0; j < N; j++) {
    double *z = work->states + j * NX, *input = work->inputs + j * NU;
    value_step(z, input, z + NX);
    if (u) value_backup_policy(z + NX, input + NU);
  }
  linearise(bounds, work, N);
  return safe_rl_tube(bounds, tables, work, N, 1.0, worst);
}

/* E (NE) after `count` periods from x under `inputs` without tracking, errors at first within
 * `start`; infinite where the domain of the derived bounds is left. */
EXPORT void safe_rl_open_tube(const Bounds *bounds, const Tables *tables, Work *work, int count,
                              const double *x, const double *inputs, const double *start,
                              double *errors) {
  double state[NX], next[NX], s[NS], a[NE * NE], b[NE * NU], width[NE], w[NE], sums[NE], room;
  const double none[NE > NU ? NE : NU] = {0};
  const int stride = (int)work->capacity;
  int32_t row;
  int columns = start_at(work, start, 1.0, width);
  memcpy(state, x, sizeof state);
  for (int j = 0; j < count; j++) {
    const double *u = inputs + j * NU;
    value_schedule(state, u, s);
    int cell = cell_of(bounds, state, s, &room, &row), inside = cell >= 0;
    for (int i = 0; i < NE; i++) inside &= width[i] <= bounds->error_domain[i];
    if (!inside) {
      for (int i = 0; i < NE; i++) errors[i] = INFINITY;
      return;
    }
    jacobians(s, a, b);
    columns = make_room(work, columns, width);
    product(a, work->g, stride, columns, work->g_next, sums);
    added(bounds, tables, cell, none, width, none, 1.0, w);
    columns = advance(work, columns, sums, w, width);
    value_step(state, u, next);
    memcpy(state, next, sizeof state);
  }
  memcpy(errors, width, sizeof width);
}

/* A plan without its tube. rooms[0]: of what VALID asks of any plan, so that below 0 it cannot be
 * VALID. rooms[1]: of what the last whole tube needed, a guess at its slack. */
EXPORT void safe_rl_screen(const Bounds *bounds, const Work *work, int N, const double *x,
                           const double *u, double *rooms) {
  double z[NX], next[NX], input[NU], h[NH], point[NX], error[NE], square = 0.0;
  int row;
  rooms[0] = rooms[1] = INFINITY;
  memcpy(z, x, sizeof z);
  memcpy(input, u, sizeof input);
  for (int j = 0;; j++) {
    const double *deviation = work->kept + (N + 1) * NH + 1 + j * NU;
    for (int i = 0; i < NU && j < N; i++) {
      double below = input[i] - bounds->low[i], above = bounds->high[i] - input[i];
      double room = (below < above ? below : above) / bounds->scale[i];
      keep_least(room, 0, rooms, &row);
      keep_least(room - deviation[i] / bounds->scale[i], 0, rooms + 1, &row);
    }
    value_safe_set(z, h);
    for (int i = 0; i < NH; i++) {
      keep_least(h[i] - bounds->sampling[i], 0, rooms, &row);
      keep_least(h[i] - work->kept[j * NH + i], 0, rooms + 1, &row);
    }
    if (j == N) break;
    value_step(z, input, next);
    memcpy(z, next, sizeof z);
    value_backup_policy(z, input);
  }
  value_base_point(z, point);
  value_difference(z, point, error);
  for (int i = 0; i < NE; i++) {
    double y = 0.0;
    for (int r = 0; r < NE; r++) y += bounds->factor[r * NE + i] * error[r];
    square += y * y;
  }
  keep_least(1.0 - sqrt(square), 0, rooms, &row);
  keep_least(1.0 - sqrt(square) - work->kept[(N + 1) * NH], 0, rooms + 1, &row);
}

/* Rows A v >= b of the projection, linear in u about the plan of u from x; each row keeps what the
 * last whole tube needed of it (untrusted: VALID decides). Box rows and padding stand in a and b
 * already. */
EXPORT void safe_rl_tightened_rows(const Theorem *theorem, const Work *work, const double *x,
                                   const double *u, int N, int stride, double *states,
                                   double *inputs, double *h, double *a, double *b,
                                   double *timing) {
  double y[NX], next[NX], input[NU];
  narrow d_y[NX], d_u[NU], d_next[NX], d_row[NH > NB ? NH : NB];
  double tube = work->kept[(N + 1) * NH], outer = tube * (2.0 - tube); /* h_B = 1 - |L'e|^2 */
  for (int i = 0; i < NX; i++) d_y[i] = (narrow){0};
  for (int i = 0; i < NU; i++) { d_u[i] = (narrow){0}; d_u[i][i] = 1.0; }
  memcpy(y, x, sizeof y);
  memcpy(input, u, sizeof input);
  for (int j = 0;; j++) {
    memcpy(states + j * NX, y, sizeof y);
    memcpy(inputs + j * NU, input, sizeof input);
    tangent_safe_set(y, d_y, h + j * NH, d_row);
    for (int i = 0; i < NH; i++) {
      int r = j * NH + i;
      write_row(theorem, r, stride, h[r] - work->kept[r], 1.0, d_row[i], u, a, b, timing);
    }
    if (j == N) break;
    tangent_step(y, d_y, input, d_u, next, d_next);
    memcpy(y, next, sizeof y);
    memcpy(d_y, d_next, sizeof d_y);
    tangent_backup_policy(y, d_y, input, d_u);
  }
  double *base = h + (N + 1) * NH;
  tangent_base_set(y, d_y, base, d_row);
  for (int i = 0; i < NB; i++) {
    int r = (N + 1) * NH + i;
    write_row(theorem, r, stride, base[i] - outer, 1.0, d_row[i], u, a, b, timing);
  }
}
