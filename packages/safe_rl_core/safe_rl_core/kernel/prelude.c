/* Scalars, tangents and dense layers, as the emitted functions use them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ALIGNED __attribute__((aligned(64)))
#define TANGENTS (NU + 1)

typedef double lanes __attribute__((vector_size(8 * LANES)));
typedef double vec8 __attribute__((vector_size(64)));
typedef int64_t int8x __attribute__((vector_size(64)));

/* NaN in either operand gives NaN, as numpy's minimum and maximum do. */
static inline double smaller(double a, double b) { return a < b || a != a ? a : b; }
static inline double larger(double a, double b) { return a > b || a != a ? a : b; }

/* Between the register form of a tangent and one column per direction. */
static inline void spread(lanes d, double *columns, int stride) {
  for (int l = 0; l < TANGENTS; l++) columns[l * stride] = d[l];
}
static inline lanes gather(const double *columns, int stride) {
  lanes d = {0};
  for (int l = 0; l < TANGENTS; l++) d[l] = columns[l * stride];
  return d;
}

static inline vec8 all8(double v) { return (vec8){v, v, v, v, v, v, v, v}; }

/* tanh to about 2 ulp: expm1(2|x|) from 2^k and a Taylor polynomial on |r| <= ln2 / 2. */
static inline vec8 tanh8(vec8 x) {
  const vec8 shift = all8(0x1.8p52);
  int8x sign = (int8x)x & (int8x)all8(-0.0);
  vec8 w = 2.0 * (vec8)((int8x)x ^ sign);
  int8x large = w > 40.0, nan = x != x;
  w = (vec8)(((int8x)all8(40.0) & large) | ((int8x)w & ~large));
  vec8 rounded = w * 0x1.71547652b82fep0 + shift;
  vec8 k = rounded - shift;
  vec8 r = w - k * 0x1.62e42fefa0000p-1 - k * 0x1.cf79abc9e3b39p-40;
  vec8 p = all8(1.0 / 6227020800.0);
  const double factorial[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                              1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0,
                              1.0 / 6.0, 0.5, 1.0};
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) p = p * r + factorial[i];
  p *= r;
  vec8 power = (vec8)((((int8x)rounded - (int8x)shift) + 1023) << 52);
  vec8 e = power * p + (power - 1.0);
  vec8 t = e / (e + 2.0);
  t = (vec8)((int8x)t | sign);
  return (vec8)(((int8x)x & nan) | ((int8x)t & ~nan));
}

/* rows 8 b0 .. 8 (b0 + blocks) of  out = weight in + bias  for `columns` columns at once. */
#define DENSE_BLOCK(columns, blocks)                                                               \
  do {                                                                                           \
    vec8 sum[columns][blocks];                                                                   \
    _Pragma("GCC unroll 16") for (int c = 0; c < (columns); c++)                                   \
      _Pragma("GCC unroll 16") for (int i = 0; i < blocks; i++)                                  \
        sum[c][i] = c == 0 ? *(const vec8 *)(bias + row + 8 * i) : all8(0.0);                    \
    for (int k = 0; k < size; k++) {                                                             \
      const double *w = weight + k * rows + row;                                                 \
      _Pragma("GCC unroll 16") for (int i = 0; i < blocks; i++) {                                \
        vec8 wi = *(const vec8 *)(w + 8 * i);                                                    \
        _Pragma("GCC unroll 16") for (int c = 0; c < (columns); c++)                               \
          sum[c][i] += wi * in[c * stride + k];                                                  \
      }                                                                                          \
    }                                                                                            \
    _Pragma("GCC unroll 16") for (int i = 0; i < blocks; i++) {                                  \
      vec8 y = sum[0][i], slope = all8(1.0);                                                     \
      if (activation == 1) { y = tanh8(y); slope = 1.0 - y * y; }                                \
      if (activation == 2) {                                                                     \
        int8x on = y > 0.0;                                                                      \
        y = (vec8)((int8x)y & (on | (y != y)));                                                  \
        slope = (vec8)((int8x)slope & on);                                                       \
      }                                                                                          \
      *(vec8 *)(out + row + 8 * i) = y;                                                          \
      _Pragma("GCC unroll 16") for (int c = 1; c < (columns); c++)                                 \
        *(vec8 *)(out + c * rows + row + 8 * i) = sum[c][i] * slope;                             \
    }                                                                                            \
  } while (0)

/* One layer for the value (column 0) and its tangents (the other columns): the weights are loaded
 * once for all of them. `rows` is padded to 8; `in` has one column every `stride` numbers. */
#define DEFINE_DENSE(name, columns)                                                              \
  static inline __attribute__((always_inline)) void name(                                        \
      const int rows, const int size, const double *restrict weight,                             \
      const double *restrict bias, const int activation, const double *restrict in,              \
      const int stride, double *restrict out) {                                                  \
    int row = 0;                                                                                 \
    if ((columns) == 1)                                                                          \
      for (; row + 64 <= rows; row += 64) DENSE_BLOCK(columns, 8);                               \
    for (; row + 32 <= rows; row += 32) DENSE_BLOCK(columns, 4);                                 \
    for (; row + 8 <= rows; row += 8) DENSE_BLOCK(columns, 1);                                   \
  }
DEFINE_DENSE(dense_value, 1)
DEFINE_DENSE(dense_tangent, 1 + TANGENTS)
