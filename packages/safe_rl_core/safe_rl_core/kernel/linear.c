/* A plan before its tube: what is known of the robot, and the derivatives along the plan.
 *
 * Above this text stand the whole nominal kernel, the robot's error functions with their tangents
 * (NE + NU directions in a `wide`), and the sizes NE (error channels) and NS (schedule).
 */

#define PER_NODE (NH + 3 * NU + NE + NS + NX)

typedef struct {          /* all float64; kernel/tables.py fills it in this order */
  double low[NU], high[NU], scale[NU];
  double schedule_low[NS], schedule_high[NS], schedule_cells[NS];
  double state_low[NX], state_high[NX];
  double disturbance[NE], prediction[NE], tracking[NE];
  double error_domain[NE], input_domain[NU];
  double gain[NU * NE];
  double sampling[NH];    /* sampling margin + EPS */
  double base_input[NU], base_schedule[NS], base_extent[NE];
  double base_curvature[NH]; /* of the safe rows over the base set */
  double factor[NE * NE], inverse[NE * NE]; /* L and L^-1, P = L L' */
} Bounds;

typedef struct {          /* half second derivatives: sum c xi_a xi_b, entries grouped by row */
  const int32_t *start, *pair;
  const double *c;
} Quadratic;

typedef struct {
  int64_t pairs, cell_size;
  const int32_t *pair_a, *pair_b; /* of the remainder: products that occur */
  Quadratic remainder;            /* `c` repeats for every schedule cell */
  const int32_t *safe_a, *safe_b;
  Quadratic safe;
  const double *shift;            /* (NE, NE, NE) */
} Tables;

typedef struct {
  double *states, *inputs;               /* (N+1, NX), (N+1, NU) */
  double *h, *slope;                     /* (N+1, NH), (N+1, NH, NE): rows and d safe_at / de */
  double *closed, *noise;                /* A + B K; |B K| tracking */
  double *outside;                       /* (N+1): room in the domain of s and z, if not inside */
  int32_t *cell, *outside_row;           /* (N+1): of the schedule, or -1; which bound is left */
  double *terminal;                      /* see Terminal */
  double *errors, *deviations;           /* E, V: (N+1, NE), (N+1, NU) */
  double *need;                          /* what every safe row must keep; last: the base set */
  double *kept;                          /* need, then V, of the last whole tube at factor 1 */
  double *g, *g_next, *score;            /* (NE, capacity) twice, (2, capacity) */
  int64_t capacity;
} Work;

typedef struct {
  double length, error[NE];  /* |L' e*|, e* = z_N [-] x* */
  double map[NE * NE];       /* L' J, J = d shifted(e*, d) / dd */
  double room[NH];           /* h_i(x*) minus what the base set needs */
  double drift;              /* max of |F(x*, u*) [-] x*| and |s(x*, u*) - s*| */
} Terminal;

/* Keep the room and its row where a value is outside of [low, high], or not a number. */
static void keep_outside(const double *value, const double *low, const double *high, int count,
                         int first, double *room, int32_t *row) {
  for (int i = 0; i < count; i++) {
    double below = value[i] - low[i], above = high[i] - value[i];
    if (!(below >= 0.0)) keep_least(below, first + i, room, row);
    else if (!(above >= 0.0)) keep_least(above, first + i, room, row);
  }
}

/* The schedule's cell (row-major); -1 outside of the domain of s and z, with `room` < 0 or nan.
 * Without s (the last node: its input is not used) z alone counts. */
static int cell_of(const Bounds *bounds, const double *z, const double *s, double *room,
                   int32_t *row) {
  int cell = 0;
  *room = INFINITY;
  *row = 0;
  if (s) keep_outside(s, bounds->schedule_low, bounds->schedule_high, NS, 0, room, row);
  keep_outside(z, bounds->state_low, bounds->state_high, NX, NS, room, row);
  if (!(*room == INFINITY)) return -1;
  for (int i = 0; i < NS && s; i++) {
    const int count = (int)bounds->schedule_cells[i];
    const double width = bounds->schedule_high[i] - bounds->schedule_low[i];
    const double share = (s[i] - bounds->schedule_low[i]) / width * count;
    const int at = share > 0.0 ? (int)floor(share) : 0; /* no number: a box without width */
    cell = cell * count + (at < count ? at : count - 1);
  }
  return cell;
}

/* A = d error_map / de and B = d error_map / dv at (s, 0, 0, 0). */
static void jacobians(const double *s, double *a, double *b) {
  static const double zero[NE > NU ? NE : NU];
  double out[NE];
  wide d_e[NE], d_v[NU], d_out[NE];
  for (int i = 0; i < NE; i++) { d_e[i] = (wide){0}; d_e[i][i] = 1.0; }
  for (int i = 0; i < NU; i++) { d_v[i] = (wide){0}; d_v[i][NE + i] = 1.0; }
  tangent_error_map(s, zero, d_e, zero, d_v, zero, out, d_out);
  for (int r = 0; r < NE; r++) {
    for (int c = 0; c < NE; c++) a[r * NE + c] = d_out[r][c];
    for (int c = 0; c < NU; c++) b[r * NU + c] = d_out[r][NE + c];
  }
}

/* h(z) and its derivatives in the error: (NH), (NH, NE). */
static void safe_rows(const double *z, double *h, double *slope) {
  static const double zero[NE];
  wide d_e[NE], d_h[NH];
  for (int i = 0; i < NE; i++) { d_e[i] = (wide){0}; d_e[i][i] = 1.0; }
  tangent_safe_at(z, zero, d_e, h, d_h);
  for (int i = 0; i < NH; i++)
    for (int c = 0; c < NE; c++) slope[i * NE + c] = d_h[i][c];
}

static void at_the_end(const Bounds *bounds, const double *z, Terminal *end) {
  static const double zero[NE];
  double point[NX], moved[NX], drift[NE], out[NE], h[NH], slope[NH * NE], s[NS];
  wide d_d[NE], d_out[NE];
  value_base_point(z, point);
  value_difference(z, point, end->error);
  for (int i = 0; i < NE; i++) { d_d[i] = (wide){0}; d_d[i][i] = 1.0; }
  tangent_shifted(end->error, zero, d_d, out, d_out);
  double square = 0.0;
  for (int i = 0; i < NE; i++) {
    double y = 0.0;
    for (int r = 0; r < NE; r++) y += bounds->factor[r * NE + i] * end->error[r];
    square += y * y;
    for (int c = 0; c < NE; c++) {
      double sum = 0.0;
      for (int r = 0; r < NE; r++) sum += bounds->factor[r * NE + i] * d_out[r][c];
      end->map[i * NE + c] = sum;
    }
  }
  end->length = sqrt(square);
  safe_rows(point, h, slope);
  for (int i = 0; i < NH; i++) {
    double reach = 0.0;
    for (int r = 0; r < NE; r++) {
      double y = 0.0;
      for (int c = 0; c < NE; c++) y += bounds->inverse[r * NE + c] * slope[i * NE + c];
      reach += y * y;
    }
    end->room[i] = h[i] - sqrt(reach) - bounds->base_curvature[i] - bounds->sampling[i];
  }
  value_step(point, bounds->base_input, moved);
  value_difference(moved, point, drift);
  end->drift = 0.0;
  for (int i = 0; i < NE; i++) end->drift = larger(end->drift, fabs(drift[i]));
  value_schedule(point, bounds->base_input, s);
  for (int i = 0; i < NS; i++)
    end->drift = larger(end->drift, fabs(s[i] - bounds->base_schedule[i]));
}

/* Everything about the plan in `work` that does not depend on how large the errors are. */
static void linearise(const Bounds *bounds, const Work *work, int N) {
  for (int j = 0; j <= N; j++) {
    const double *z = work->states + j * NX, *u = work->inputs + j * NU;
    double s[NS], a[NE * NE], b[NE * NU];
    double *closed = work->closed + j * NE * NE, *noise = work->noise + j * NE;
    safe_rows(z, work->h + j * NH, work->slope + j * NH * NE);
    value_schedule(z, u, s);
    work->cell[j] =
        cell_of(bounds, z, j < N ? s : NULL, work->outside + j, work->outside_row + j);
    if (j == N || work->cell[j] < 0) continue;
    jacobians(s, a, b);
    for (int r = 0; r < NE; r++) {
      noise[r] = 0.0;
      for (int c = 0; c < NE; c++) {
        double through = 0.0;
        for (int l = 0; l < NU; l++) through += b[r * NU + l] * bounds->gain[l * NE + c];
        if (j == 0) through = 0.0; /* the first input is sent as planned */
        closed[r * NE + c] = a[r * NE + c] + through;
        noise[r] += fabs(through) * bounds->tracking[c];
      }
    }
  }
  at_the_end(bounds, work->states + N * NX, (Terminal *)work->terminal);
}
