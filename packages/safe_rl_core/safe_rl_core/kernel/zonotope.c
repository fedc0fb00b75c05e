/* Zonotopes { g l : |l_i| <= 1 }: one generator per column, rows of `stride` numbers, zero from the
 * last column to the end of its chunk.
 */

#define CHUNK 32

static inline int chunks(int columns) { return (columns + CHUNK - 1) / CHUNK * CHUNK; }

/* Vectors as wide as the machine's own, and how many of each row of g a product keeps in them. */
#if defined(__AVX512F__)
enum { WIDTH = 8, SETS = 2 };
#elif defined(__AVX__)
enum { WIDTH = 4, SETS = 1 };
#else
enum { WIDTH = 2, SETS = 2 };
#endif
typedef double vecw __attribute__((vector_size(8 * WIDTH)));
typedef int64_t intw __attribute__((vector_size(8 * WIDTH)));

static inline vecw magnitude(vecw v) { return (vecw)((intw)v & INT64_MAX); }

static inline double total_of(vecw v) {
  double sum = 0.0;
  for (int l = 0; l < WIDTH; l++) sum += v[l];
  return sum;
}

/* out = m g and its row sums of magnitudes, m (NE, NE), g (NE, columns). */
static void product(const double *restrict m, const double *restrict g, int stride, int columns,
                    double *restrict out, double *sums) {
  vecw total[NE];
  for (int r = 0; r < NE; r++) total[r] = (vecw){0};
  for (int l = 0; l < columns; l += WIDTH * SETS) {
    vecw part[NE][SETS];
#pragma GCC unroll 16
    for (int c = 0; c < NE; c++)
#pragma GCC unroll 2
      for (int s = 0; s < SETS; s++)
        part[c][s] = *(const vecw *)(g + c * stride + l + s * WIDTH);
#pragma GCC unroll 16
    for (int r = 0; r < NE; r++)
#pragma GCC unroll 2
      for (int s = 0; s < SETS; s++) {
        vecw sum = m[r * NE] * part[0][s];
#pragma GCC unroll 16
        for (int c = 1; c < NE; c++) sum += m[r * NE + c] * part[c][s];
        *(vecw *)(out + r * stride + l + s * WIDTH) = sum;
        total[r] += magnitude(sum);
      }
  }
  for (int r = 0; r < NE; r++) sums[r] = total_of(total[r]);
}

static int equal_or_opposite(const double *a, const double *b) {
  int same = 1, opposite = 1;
  for (int c = 0; c < NE; c++) { same &= a[c] == b[c]; opposite &= a[c] == -b[c]; }
  return same | opposite;
}

/* Row sums of the magnitudes of m g alone, for rows with few entries. An upper and a lower bound
 * of one quantity follow each other: the second has the first one's sum. */
static void reaches(const double *m, int rows, const double *g, int stride, int columns,
                    double *sums) {
  for (int r = 0; r < rows; r++) {
    const double *row = m + r * NE;
    double factor[NE];
    int at[NE], count = 0;
    if (r > 0 && equal_or_opposite(row, row - NE)) { sums[r] = sums[r - 1]; continue; }
    for (int c = 0; c < NE; c++)
      if (row[c] != 0.0) { factor[count] = row[c]; at[count++] = c * stride; }
    vecw total = {0};
    for (int l = 0; l < columns; l += 4 * WIDTH) {
      vecw s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
      for (int q = 0; q < count; q++) {
        const vecw *p = (const vecw *)(g + at[q] + l);
        s0 += factor[q] * p[0];
        s1 += factor[q] * p[1];
        s2 += factor[q] * p[2];
        s3 += factor[q] * p[3];
      }
      total += (magnitude(s0) + magnitude(s1)) + (magnitude(s2) + magnitude(s3));
    }
    sums[r] = total_of(total);
  }
}

/* g = [g, diag(w)]; the columns up to the next whole chunk are zero. */
static int append_box(double *g, int stride, int columns, const double *w) {
  for (int r = 0; r < NE; r++) {
    for (int l = columns; l < chunks(columns + NE); l++) g[r * stride + l] = 0.0;
    g[r * stride + columns + r] = w[r];
  }
  return columns + NE;
}

/* The k-th smallest of v[0..n), which is reordered. */
static double kth(double *v, int n, int k) {
  for (int low = 0, high = n - 1; low < high;) {
    double pivot = v[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (v[i] < pivot) i++;
      while (v[j] > pivot) j--;
      if (i <= j) { double t = v[i]; v[i++] = v[j]; v[j--] = t; }
    }
    if (k <= j) high = j;
    else if (k >= i) low = i;
    else break;
  }
  return v[k];
}

/* Order reduction (Girard, HSCC 2005): the columns that are nearest to an axis, relative to the
 * width of the zonotope, are replaced by the box around them; about `keep` columns stay. */
static int reduce(double *g, int stride, int columns, int keep, const double *width,
                  double *score) {
  double box[NE] = {0}, *most = score + stride;
  for (int l = 0; l < columns; l++) score[l] = most[l] = 0.0;
  for (int r = 0; r < NE; r++) {
    const double scale = 1.0 / width[r];
    for (int l = 0; l < columns; l++) {
      double share = fabs(g[r * stride + l]) * scale;
      score[l] += share;
      most[l] = share > most[l] ? share : most[l];
    }
  }
  for (int l = 0; l < columns; l++) most[l] = score[l] -= most[l];
  double limit = kth(most, columns, columns - keep);
  int kept = 0;
  for (int l = 0; l < columns; l++) {
    int stays = score[l] > limit && kept < keep;
    for (int r = 0; r < NE; r++) {
      double entry = g[r * stride + l];
      if (stays) g[r * stride + kept] = entry;
      else box[r] += fabs(entry);
    }
    kept += stays;
  }
  for (int r = 0; r < NE; r++)
    for (int l = kept; l < chunks(columns); l++) g[r * stride + l] = 0.0;
  return append_box(g, stride, kept, box);
}
