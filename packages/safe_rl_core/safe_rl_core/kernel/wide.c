/* From here on a tangent has NE + NU directions: the emitted text is the same, `lanes` is wider. */
typedef lanes narrow;
typedef double wide __attribute__((vector_size(8 * WIDE)));
#undef TANGENTS
#define TANGENTS (NE + NU)
static inline void spread_wide(wide d, double *columns, int stride) {
  for (int l = 0; l < TANGENTS; l++) columns[l * stride] = d[l];
}
static inline wide gather_wide(const double *columns, int stride) {
  wide d = {0};
  for (int l = 0; l < TANGENTS; l++) d[l] = columns[l * stride];
  return d;
}
DEFINE_DENSE(dense_wide, 1 + TANGENTS)
#define lanes wide
#define spread spread_wide
#define gather gather_wide
#define dense_tangent dense_wide
