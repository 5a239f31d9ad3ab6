/* Vectors of float as GCC and Clang have them on every CPU, as wide as the CPU's registers, and exp2 on them. */

#ifndef VECTORS_H
#define VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define UNROLL _Pragma("GCC unroll 32")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec values) { *(vec *)to = values; }
static inline vec choose(ints mask, vec yes, vec no) { return (vec)((mask & (ints)yes) | (~mask & (ints)no)); }

static inline float total(vec values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

/* Which lanes of the vector that starts at `word` are within the vocabulary. */
static inline ints present(long word, long vocab) {
    ints mask;
    for (int lane = 0; lane < LANES; lane++) mask[lane] = word + lane < vocab ? -1 : 0;
    return mask;
}

/* 2^(n + f), where the last bits of `shifted` are the integer n and f is within [-1/2, 1/2]: n goes into the exponent's
   bits, and a polynomial has a relative error below 9.4e-8, 1.6e-7 with rounding. 2^0 is exactly 1, and NaN gives NaN. */
static inline vec scaled_exp2(vec shifted, vec f) {
    vec p = f * 0x1.5bda58p-10f + 0x1.3ce8aep-7f;
    p = p * f + 0x1.c6b6d8p-5f;
    p = p * f + 0x1.ebf9c2p-3f;
    p = p * f + 0x1.62e42ap-1f;
    p = p * f + 1.0f;
    return (vec)((ints)p + ((ints)shifted << 23));
}

#define MAGIC 0x1.8p23f /* so large that its last bit is worth 1 */

/* 2^x for |x| <= 126. */
static inline vec exp2_of(vec x) {
    const vec shifted = x + MAGIC, f = x - (shifted - MAGIC);
    return scaled_exp2(shifted, f);
}

/* e^x for |x| <= 87. log2(e) is the sum of two floats, so that a large x loses no more than a small one. */
static inline vec exp_of(vec x) {
    const float high = 0x1.715476p+0f, low = 0x1.4ae0cp-26f;
    const vec shifted = x * high + MAGIC, n = shifted - MAGIC;
    return scaled_exp2(shifted, x * low + (x * high - n));
}

#endif
