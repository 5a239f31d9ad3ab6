/* A step on the lattice as a record keeps it, in one pass: `ordered` and `encode` of marble_sweep/record/lattice_coding.py. */

#include <stdint.h>

#define BLOCK 64 /* a loop whose number of turns is known becomes vectors */
#define INLINE static inline __attribute__((always_inline))

#define DEFINE_STEP(NAME, BITS, SIGNED)                                                                                \
    INLINE void NAME##_block(const BITS *weights, const BITS *before, long count, BITS *points, BITS *coded) {         \
        for (long i = 0; i < count; i++) {                                                                             \
            const BITS turned = (BITS)((SIGNED)weights[i] >> (8 * sizeof(BITS) - 1)) & (BITS)((BITS)-1 >> 1);          \
            const BITS point = weights[i] ^ turned, difference = before ? point - before[i] : point;                   \
            points[i] = point;                                                                                         \
            coded[i] = (BITS)(difference << 1) ^ (BITS)((SIGNED)difference >> (8 * sizeof(BITS) - 1));                 \
        }                                                                                                              \
    }                                                                                                                  \
    void NAME(const BITS *weights, const BITS *before, long count, BITS *points, BITS *coded) {                        \
        long i = 0;                                                                                                    \
        for (; i + BLOCK <= count; i += BLOCK) {                                                                       \
            BITS own[BLOCK], steps[BLOCK]; /* which overlap with nothing */                                            \
            NAME##_block(weights + i, before ? before + i : before, BLOCK, own, steps);                                \
            __builtin_memcpy(points + i, own, sizeof own);                                                             \
            __builtin_memcpy(coded + i, steps, sizeof steps);                                                          \
        }                                                                                                              \
        NAME##_block(weights + i, before ? before + i : before, count - i, points + i, coded + i);                     \
    }

DEFINE_STEP(lattice_step_16, uint16_t, int16_t)
DEFINE_STEP(lattice_step_32, uint32_t, int32_t)
