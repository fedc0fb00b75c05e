/* Many states in one call: rows, ways out and decisions, one state after the other.
 *
 * Below rollout.c, whose functions do the work. Every function here takes `count` states that lie
 * one behind the other and a work area of safe_rl_area_size numbers, which it alone uses: two calls
 * with different areas may run at the same time. No state's answer depends on its neighbours.
 */

enum { PASSED, PROJECTED, BACKUP };

/* What one rollout writes (see safe_rl_rows), and the slack of a scan. */
typedef struct {
  const Theorem *theorem;
  int horizon, stride;
  double *states, *inputs, *h, *a, *b, *timing, *slack;
} Area;

/* `tolerance` of a row, `rounding` of a verified plan, and the blends to try, from the first one. */
typedef struct {
  double tolerance, rounding;
  int blends;
  double blend[8];
} Rules;

EXPORT long safe_rl_area_size(int N, int stride) {
  return (long)(N + 1) * (NX + NU) + 2 * ROWS(N) + (long)(NU + 2) * stride + 7 * 8;
}

static double *cut(double **rest, long count) {
  double *piece = *rest;
  *rest += (count + 7) / 8 * 8;
  return piece;
}

static Area lay_out(const Theorem *theorem, int N, int stride, double *memory) {
  Area area = {.theorem = theorem, .horizon = N, .stride = stride};
  area.a = cut(&memory, (long)NU * stride);
  area.b = cut(&memory, stride);
  area.slack = cut(&memory, stride);
  area.states = cut(&memory, (long)(N + 1) * NX);
  area.inputs = cut(&memory, (long)(N + 1) * NU);
  area.h = cut(&memory, ROWS(N));
  area.timing = cut(&memory, ROWS(N));
  return area;
}

static double rows_at(const Area *w, const double *x, int *worst) {
  return safe_rl_rows(w->theorem, x, w->horizon, w->stride, w->states, w->inputs, w->h, w->a, w->b,
                      w->timing, worst);
}

static int all_finite(const double *values, int count) {
  for (int i = 0; i < count; i++)
    if (!isfinite(values[i])) return 0;
  return 1;
}

/* The rows of the last `rows_at`, one after the other and without the box. */
static void copy_rows(const Area *w, double *normals, double *offsets) {
  const int rows = ROWS(w->horizon);
  memcpy(offsets, w->b, rows * sizeof(double));
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < NU; j++) normals[r * NU + j] = w->a[j * w->stride + r];
}

EXPORT void safe_rl_batch_rows(const Theorem *theorem, int N, int stride, double *memory, long count,
                              const double *x, double *normals, double *offsets, double *backup,
                              double *least, int *worst) {
  const Area w = lay_out(theorem, N, stride, memory);
  const long rows = ROWS(N);
  for (long k = 0; k < count; k++) {
    least[k] = rows_at(&w, x + k * NX, worst + k);
    memcpy(backup + k * NU, w.inputs, NU * sizeof(double));
    copy_rows(&w, normals + k * rows * NU, offsets + k * rows);
  }
}

EXPORT void safe_rl_batch_way_out(const Theorem *theorem, int N, int stride, double *memory,
                                 long count, const double *x, double *least) {
  const Area w = lay_out(theorem, N, stride, memory);
  for (long k = 0; k < count; k++) {
    double u[NU];
    int row;
    value_backup_policy(x + k * NX, u);
    least[k] = safe_rl_verify(theorem, x + k * NX, u, N, w.states, w.inputs, w.h, &row);
  }
}

/* What follows a proposal: u itself, whether it was moved, and the slope du/d proposed with the rows
 * held (NU by NU, SI units). */
typedef struct {
  double u[NU], slope[NU][NU];
  int moved;
} Nearest;

/* The slope of a projection onto the `count` active rows: 1 - q'q in v, q their orthonormal basis. */
static void project_slope(const Area *w, const int *active, int count, double slope[NU][NU]) {
  double q[NU][NU], t[NU][NU];
  const double *scale = w->theorem->scale;
  if (!factor(w->stride, w->a, active, count, q, t)) count = 0;
  for (int i = 0; i < NU; i++)
    for (int j = 0; j < NU; j++) {
      double entry = i == j ? 1.0 : 0.0;
      for (int c = 0; c < count; c++) entry -= q[c][i] * q[c][j];
      slope[i][j] = entry * scale[i] / scale[j];
    }
}

/* The proposal itself if it meets every row and the box, else its projection; 0 if there is none.
 * Where the proposal moved into the box meets every row, that is the projection, and free of the
 * rounding that a far proposal brings into the active-set method. */
static int nearest(const Area *w, const Rules *rules, const double *proposed, Nearest *found) {
  const Theorem *t = w->theorem;
  double v_d[NU], v[NU], slack;
  int active[NU + 1], outside = 0;
  memset(found->slope, 0, sizeof found->slope);
  for (int j = 0; j < NU; j++) {
    const int beyond = proposed[j] < t->low[j] || proposed[j] > t->high[j];
    v_d[j] = proposed[j] / t->scale[j];
    found->slope[j][j] = beyond ? 0.0 : 1.0;
    outside |= beyond;
  }
  memcpy(found->u, proposed, sizeof found->u);
  safe_rl_scan(w->stride, w->a, w->b, v_d, w->slack, &slack);
  found->moved = slack < -rules->tolerance || outside;
  if (!found->moved) return 1;
  if (outside) {
    for (int j = 0; j < NU; j++) {
      found->u[j] = fmin(fmax(proposed[j], t->low[j]), t->high[j]);
      v[j] = found->u[j] / t->scale[j];
    }
    safe_rl_scan(w->stride, w->a, w->b, v, w->slack, &slack);
    if (slack >= -rules->tolerance) return 1;
  }
  const int count = safe_rl_project(w->stride, w->a, w->b, v_d, v, active, w->slack);
  if (count < 0) return 0;
  project_slope(w, active, count, found->slope);
  for (int j = 0; j < NU; j++) found->u[j] = fmin(fmax(v[j] * t->scale[j], t->low[j]), t->high[j]);
  return 1;
}

/* What is sent for one state, `rows_at` of which has just been called: see shield.py, of which
 * this is the decision without a committed plan. `slope`: du/d proposed with rows, blend and backup
 * held. */
static int decide(const Area *w, const Rules *rules, const double *x, const double *proposed,
                  const double *u_b, double least, double *u, double *slope, double *blend,
                  double *margin) {
  Nearest candidate;
  int row;
  if (all_finite(proposed, NU) && nearest(w, rules, proposed, &candidate))
    for (int i = 0; i < rules->blends; i++) {
      *blend = rules->blend[i];
      for (int j = 0; j < NU; j++)
        u[j] = *blend == 1.0 ? candidate.u[j] : u_b[j] + *blend * (candidate.u[j] - u_b[j]);
      *margin = safe_rl_verify(w->theorem, x, u, w->horizon, w->states, w->inputs, w->h, &row);
      if (*margin >= -rules->rounding) {
        for (int j = 0; j < NU * NU; j++) slope[j] = *blend * candidate.slope[j / NU][j % NU];
        return candidate.moved || *blend < 1.0 ? PROJECTED : PASSED;
      }
    }
  memset(slope, 0, NU * NU * sizeof(double));
  memcpy(u, u_b, NU * sizeof(double));
  *blend = 0.0;
  *margin = least;
  return BACKUP;
}

/* Where a state is not finite everything written is NAN but verdict, blend and slope. With
 * `with_rows` the rows that were projected onto come too. */
EXPORT void safe_rl_batch_decide(const Theorem *theorem, int N, int stride, double *memory,
                                 long count, const Rules *rules, int with_rows, const double *x,
                                 const double *proposed, double *action, double *slope,
                                 double *backup, double *blend, double *margin, int8_t *verdict,
                                 double *normals, double *offsets) {
  const Area w = lay_out(theorem, N, stride, memory);
  const long rows = with_rows ? ROWS(N) : 0;
  for (long k = 0; k < count; k++) {
    const double *x_k = x + k * NX;
    double *action_k = action + k * NU, *backup_k = backup + k * NU, *slope_k = slope + k * NU * NU;
    double *normals_k = normals + k * rows * NU, *offsets_k = offsets + k * rows;
    if (all_finite(x_k, NX)) {
      int row;
      const double least = rows_at(&w, x_k, &row);
      memcpy(backup_k, w.inputs, NU * sizeof(double));
      if (with_rows) copy_rows(&w, normals_k, offsets_k);
      verdict[k] = decide(&w, rules, x_k, proposed + k * NU, backup_k, least, action_k, slope_k,
                          blend + k, margin + k);
    } else {
      for (int j = 0; j < NU; j++) action_k[j] = backup_k[j] = NAN;
      for (long i = 0; i < rows * NU; i++) normals_k[i] = NAN;
      for (long i = 0; i < rows; i++) offsets_k[i] = NAN;
      memset(slope_k, 0, NU * NU * sizeof(double));
      verdict[k] = BACKUP;
      blend[k] = 0.0;
      margin[k] = NAN;
    }
  }
}
