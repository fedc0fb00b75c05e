/* The backup rollout, its sensitivities, the rows of the projection, and the exact projection.
 *
 * Above this text stand the robot's functions, emitted from its program: value_* and tangent_* for
 * step, backup_policy, safe_set and base_set, and the sizes NX (states), NU (inputs), NH (safe
 * rows), NB (base rows). A tangent holds NU + 1 directions: the inputs of the coming period, and
 * time (how the plan moves if the coming command takes effect later).
 *
 * Notation: x state now; u_b = pi_b(x); psi_0 = F(x, u), psi_{k+1} = F(psi_k, pi_b(psi_k)).
 * Row (k, i) of the projection, k = 0..N, linear in u at u_b:
 *     h_i(psi_k) - eps_i + grad h_i . D psi_k/du (u - u_b) >= (1 - class_k dt) (h_i(psi_k) - eps_i)
 * and the same for every base row at k = N. u = u_b meets every row whose h_i(psi_k) >= eps_i.
 */

#define ROWS(N) (((N) + 1) * NH + NB)

typedef struct {
  double keep_safe;      /* class_k * period, in (0, 1) */
  double keep_base;      /* base_class_k * period, in (0, 1) */
  double low[NU];        /* input box */
  double high[NU];
  double scale[NU];      /* metric of the projection: v = u / scale */
  double margin[NH];     /* distance kept from each safe row */
} Theorem;

/* Keep the smallest room and its row. A room that is not a number is kept for good: such a plan is
 * never verified, whatever its other rows say. */
static inline void keep_least(double room, int row, double *least, int *worst) {
  if (!(room >= *least) && *least == *least) {
    *least = room;
    *worst = row;
  }
}

/* psi_0..psi_N with the plan's inputs; returns the smallest h - margin over all rows. */
EXPORT double safe_rl_verify(const Theorem *theorem, const double *x, const double *u, int N,
                             double *states, double *inputs, double *h, int *worst) {
  double least = INFINITY;
  *worst = -1;
  memcpy(inputs, u, NU * sizeof(double));
  value_step(x, u, states);
  for (int k = 0; k <= N; k++) {
    const double *psi = states + k * NX;
    double *row = h + k * NH;
    value_safe_set(psi, row);
    for (int i = 0; i < NH; i++)
      keep_least(row[i] - theorem->margin[i], k * NH + i, &least, worst);
    if (k < N) {
      value_backup_policy(psi, inputs + (k + 1) * NU);
      value_step(psi, inputs + (k + 1) * NU, states + (k + 1) * NX);
    }
  }
  double *base = h + (N + 1) * NH;
  value_base_set(states + N * NX, base);
  for (int j = 0; j < NB; j++) keep_least(base[j], (N + 1) * NH + j, &least, worst);
  return least;
}

static inline void write_row(const Theorem *theorem, int r, int stride, double room, double keep,
                             lanes slope, const double *u_b, double *a, double *b, double *timing) {
  double norm = 0.0, offset = -keep * room;
  for (int j = 0; j < NU; j++) {
    double entry = slope[j] * theorem->scale[j];
    a[j * stride + r] = entry;
    norm += entry * entry;
    offset += slope[j] * u_b[j];
  }
  timing[r] = slope[NU];
  norm = sqrt(norm);
  double inverse = norm > 1e-12 ? 1.0 / norm : 0.0;
  for (int j = 0; j < NU; j++) a[j * stride + r] *= inverse;
  b[r] = norm > 1e-12 ? offset * inverse : -1.0;
}

/* The rollout under u_b with tangents, and from it all rows  A v >= b  in v = u / scale, each of
 * unit length; then the box as 2 NU further rows. A is stored by columns of length `stride`. A row
 * that the input cannot move is written as 0 >= -1: `h` says whether it holds. */
EXPORT double safe_rl_rows(const Theorem *theorem, const double *x, int N, int stride,
                           double *states, double *inputs, double *h, double *a, double *b,
                           double *timing, int *worst) {
  double u[NU], y[NX], next[NX], x_dot[NX], least = INFINITY;
  lanes d_x[NX], d_u[NU], d_y[NX], d_next[NX], d_row[NH > NB ? NH : NB];
  double u_b[NU];
  value_backup_policy(x, u_b);
  value_dynamics(x, u_b, x_dot);
  for (int i = 0; i < NX; i++) { d_x[i] = (lanes){0}; d_x[i][NU] = x_dot[i]; }
  for (int j = 0; j < NU; j++) { d_u[j] = (lanes){0}; d_u[j][j] = 1.0; }
  *worst = -1;
  memcpy(inputs, u_b, sizeof u_b);
  tangent_step(x, d_x, u_b, d_u, y, d_y);
  for (int k = 0;; k++) {
    double *row = h + k * NH;
    memcpy(states + k * NX, y, sizeof y);
    tangent_safe_set(y, d_y, row, d_row);
    for (int i = 0; i < NH; i++) {
      double room = row[i] - theorem->margin[i];
      keep_least(room, k * NH + i, &least, worst);
      write_row(theorem, k * NH + i, stride, room, theorem->keep_safe, d_row[i], u_b, a, b, timing);
    }
    if (k == N) break;
    tangent_backup_policy(y, d_y, u, d_u);
    memcpy(inputs + (k + 1) * NU, u, sizeof u);
    tangent_step(y, d_y, u, d_u, next, d_next);
    memcpy(y, next, sizeof y);
    memcpy(d_y, d_next, sizeof d_y);
  }
  double *base = h + (N + 1) * NH;
  tangent_base_set(y, d_y, base, d_row);
  for (int j = 0; j < NB; j++) {
    int r = (N + 1) * NH + j;
    keep_least(base[j], r, &least, worst);
    write_row(theorem, r, stride, base[j], theorem->keep_base, d_row[j], u_b, a, b, timing);
  }
  int rows = ROWS(N);
  for (int r = rows; r < stride; r++) {
    for (int j = 0; j < NU; j++) a[j * stride + r] = 0.0;
    b[r] = -1.0;
  }
  for (int j = 0; j < NU; j++) {
    a[j * stride + rows + j] = 1.0;
    b[rows + j] = theorem->low[j] / theorem->scale[j];
    a[j * stride + rows + NU + j] = -1.0;
    b[rows + NU + j] = -theorem->high[j] / theorem->scale[j];
  }
  return least;
}

/* The most violated row at v and, in *slack, its a.v - b (negative: violated). */
EXPORT int safe_rl_scan(int stride, const double *restrict a, const double *restrict b,
                        const double *v, double *restrict work, double *slack) {
  for (int r = 0; r < stride; r++) {
    double s = -b[r];
    for (int j = 0; j < NU; j++) s += a[j * stride + r] * v[j];
    work[r] = s;
  }
  double least[8] = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY};
  for (int r = 0; r < stride; r += 8)
    for (int l = 0; l < 8; l++) least[l] = work[r + l] < least[l] ? work[r + l] : least[l];
  double smallest = least[0];
  for (int l = 1; l < 8; l++) smallest = least[l] < smallest ? least[l] : smallest;
  *slack = smallest;
  for (int r = 0; r < stride; r++)
    if (!(work[r] > smallest)) return r;
  return 0;
}

/* Orthonormal basis q of the active normals with the triangular factor t (Gram-Schmidt, twice).
 * Returns 0 if they are dependent. */
static int factor(int stride, const double *a, const int *active, int count, double q[NU][NU],
                  double t[NU][NU]) {
  for (int c = 0; c < count; c++) {
    double n[NU], length = 0.0;
    for (int j = 0; j < NU; j++) n[j] = a[j * stride + active[c]];
    for (int k = 0; k < c; k++) t[k][c] = 0.0;
    for (int pass = 0; pass < 2; pass++)
      for (int k = 0; k < c; k++) {
        double dot = 0.0;
        for (int j = 0; j < NU; j++) dot += q[k][j] * n[j];
        for (int j = 0; j < NU; j++) n[j] -= dot * q[k][j];
        t[k][c] += dot;
      }
    for (int j = 0; j < NU; j++) length += n[j] * n[j];
    length = sqrt(length);
    if (!(length > 1e-9)) return 0;
    t[c][c] = length;
    for (int j = 0; j < NU; j++) q[c][j] = n[j] / length;
  }
  return 1;
}

/* Exact answer on a guessed active set: v = v_d + N' lambda with N v = b there. Accepted (1) only if
 * lambda >= 0 and every row and the box hold to 1e-9; then v is the projection. */
EXPORT int safe_rl_repair(int stride, const double *a, const double *b, const double *v_d,
                          const int *active, int count, double *v, double *work) {
  double q[NU][NU], t[NU][NU], y[NU], lambda[NU], slack;
  if (count > NU || !factor(stride, a, active, count, q, t)) return 0;
  memcpy(v, v_d, NU * sizeof(double));
  for (int c = 0; c < count; c++) {
    double rest = b[active[c]];
    for (int j = 0; j < NU; j++) rest -= a[j * stride + active[c]] * v_d[j];
    for (int k = 0; k < c; k++) rest -= t[k][c] * y[k];
    y[c] = rest / t[c][c];
  }
  for (int c = count - 1; c >= 0; c--) {
    double rest = y[c];
    for (int k = c + 1; k < count; k++) rest -= t[c][k] * lambda[k];
    lambda[c] = rest / t[c][c];
    if (!(lambda[c] >= -1e-12)) return 0;
  }
  for (int c = 0; c < count; c++)
    for (int j = 0; j < NU; j++) v[j] += y[c] * q[c][j];
  safe_rl_scan(stride, a, b, v, work, &slack);
  return slack >= -1e-9;
}

/* The projection of v_d onto { A v >= b } by the dual active-set method of Goldfarb and Idnani
 * (Math. Programming 27, 1983) for the identity Hessian. Returns the number of active rows (their
 * indices in `active`), or -1 if the rows contradict each other, or -2 after 64 iterations. */
EXPORT int safe_rl_project(int stride, const double *a, const double *b, const double *v_d,
                           double *v, int *active, double *work) {
  double lambda[NU + 1];
  int count = 0;
  memcpy(v, v_d, NU * sizeof(double));
  for (int iteration = 0; iteration < 64; iteration++) {
    double slack;
    int p = safe_rl_scan(stride, a, b, v, work, &slack);
    if (slack >= -1e-10) return count;
    double added = 0.0;
    for (int inner = 0;; inner++) {
      double q[NU][NU], t[NU][NU], z[NU], r[NU], dot[NU], zz = 0.0;
      if (inner > 2 * NU || !factor(stride, a, active, count, q, t)) return -2;
      for (int j = 0; j < NU; j++) z[j] = a[j * stride + p];
      for (int c = 0; c < count; c++) dot[c] = 0.0;
      for (int pass = 0; pass < 2; pass++)
        for (int c = 0; c < count; c++) {
          double d = 0.0;
          for (int j = 0; j < NU; j++) d += q[c][j] * z[j];
          for (int j = 0; j < NU; j++) z[j] -= d * q[c][j];
          dot[c] += d;
        }
      for (int c = count - 1; c >= 0; c--) {
        double rest = dot[c];
        for (int k = c + 1; k < count; k++) rest -= t[c][k] * r[k];
        r[c] = rest / t[c][c];
      }
      for (int j = 0; j < NU; j++) zz += z[j] * z[j];
      double dual = INFINITY;
      int leaving = -1;
      for (int c = 0; c < count; c++)
        if (r[c] > 1e-13 && lambda[c] / r[c] < dual) { dual = lambda[c] / r[c]; leaving = c; }
      double primal = count < NU && zz > 1e-18 ? -slack / zz : INFINITY;
      double length = dual < primal ? dual : primal;
      if (length == INFINITY) return -1;
      for (int c = 0; c < count; c++) lambda[c] -= length * r[c];
      added += length;
      if (primal < INFINITY)
        for (int j = 0; j < NU; j++) v[j] += length * z[j];
      if (primal <= dual) {
        active[count] = p;
        lambda[count++] = added;
        break;
      }
      for (int c = leaving; c + 1 < count; c++) { active[c] = active[c + 1]; lambda[c] = lambda[c + 1]; }
      count--;
      slack = -b[p];
      for (int j = 0; j < NU; j++) slack += a[j * stride + p] * v[j];
    }
  }
  return -2;
}
