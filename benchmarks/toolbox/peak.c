/* Peak of one thread in fused multiply-adds: as many independent chains as hide the latency, all in
 * registers. GCC's vector extension, so that the same text runs on every processor. */
#define EXPORT __attribute__((visibility("default")))

#define DEFINE_PEAK(name, number, bytes, chains)                                                   \
  typedef number vector_##name __attribute__((vector_size(bytes)));                                \
  EXPORT double name(long rounds) {                                                                \
    volatile number source[2] = {0.999, 1e-3};                                                     \
    vector_##name sum[chains];                                                                     \
    const vector_##name factor = source[0] - (vector_##name){0}, more = source[1] - (vector_##name){0}; \
    for (int i = 0; i < chains; i++) sum[i] = (number)i - (vector_##name){0};                      \
    for (long k = 0; k < rounds; k++) {                                                            \
      _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++) sum[i] = sum[i] * factor + more;   \
    }                                                                                              \
    double total = 0.0;                                                                            \
    for (int i = 0; i < chains; i++) total += sum[i][0];                                           \
    return total;                                                                                  \
  }

DEFINE_PEAK(peak_16, double, 16, 12)
DEFINE_PEAK(peak_32, double, 32, 12)
DEFINE_PEAK(peak_64, double, 64, 12)
