/* What a head does between its matrix products: from the logits of some rows to their losses and gradients, in place.

   A row stays in the innermost cache from its first pass to its last. Every row is worked out by itself, and the order
   of its sum is written out: how the rows are shared among threads changes no bit. */

#include "vectors.h"

#define BLOCK (32 * LANES) /* numbers that are added up before they are added to the row's sum */
#define CHAINS 4           /* maxima at once; a block has a multiple of so many vectors */
#define LEAST -87.0f       /* e to it is still a normal number */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t uints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec read(const void *row, long v, const int is_bfloat16) {
    if (!is_bfloat16) return load((const float *)row + v);
    return (vec)(__builtin_convertvector(*(const shorts *)((const uint16_t *)row + v), uints) << 16);
}

/* bfloat16 to nearest, ties to even; NaN stays NaN, as its lower half is zero here. */
INLINE void write(void *row, long v, vec values, const int is_bfloat16) {
    if (!is_bfloat16) {
        store((float *)row + v, values);
    } else {
        const uints bits = (uints)values;
        *(shorts *)((uint16_t *)row + v) = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, shorts);
    }
}

INLINE vec exponential(vec logits, float shift, const int needs_shift) {
    if (needs_shift) {
        logits -= shift;
        logits = choose(logits < LEAST, (vec){0} + LEAST, logits);
    }
    return exp_of(logits);
}

INLINE void *place(void *row, long v, const int is_bfloat16) { return (char *)row + v * (is_bfloat16 ? 2 : 4); }

/* A row's last logits, too few for a vector, with zeros after them. */
INLINE void copy_rest(void *rest, void *row, long start, long vocab, const int is_bfloat16) {
    memset(rest, 0, 4 * LANES);
    memcpy(rest, place(row, start, is_bfloat16), (vocab - start) * (is_bfloat16 ? 2 : 4));
}

/* Of two numbers the larger, lane by lane; NaN in `a` counts for nothing. */
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

/* The largest of a row's logits that are numbers. */
INLINE float maximum(void *row, long vocab, const int is_bfloat16) {
    const long whole = vocab / LANES * LANES;
    vec most = (vec){0} - INFINITY;
    for (long v = 0; v < whole; v += LANES) {
        most = larger(read(row, v, is_bfloat16), most);
    }
    if (whole < vocab) {
        char rest[4 * LANES];
        copy_rest(rest, row, whole, vocab, is_bfloat16);
        const vec logits = read(rest, 0, is_bfloat16);
        most = choose((logits > most) & present(whole, vocab), logits, most);
    }
    float largest = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) largest = fmaxf(largest, most[lane]);
    return largest;
}

/* The sum of e^(logit - shift) over a row, each of which takes the place of its logit where `keeps` says so. */
INLINE float exponentiate(
    void *row, long vocab, float shift, const int needs_shift, const int is_bfloat16, const int keeps
) {
    const long whole = vocab / LANES * LANES;
    vec sums = {0};
    for (long start = 0; start < whole; start += BLOCK) {
        const long end = start + BLOCK < whole ? start + BLOCK : whole;
        vec block = {0};
        for (long v = start; v < end; v += LANES) {
            const vec e = exponential(read(row, v, is_bfloat16), shift, needs_shift);
            block += e;
            if (keeps) write(row, v, e, is_bfloat16);
        }
        sums += block;
    }
    if (whole < vocab) {
        char rest[4 * LANES];
        copy_rest(rest, row, whole, vocab, is_bfloat16);
        const vec e = exponential(read(rest, 0, is_bfloat16), shift, needs_shift);
        sums += choose(present(whole, vocab), e, (vec){0});
        write(rest, 0, e, is_bfloat16);
        if (keeps) memcpy(place(row, whole, is_bfloat16), rest, (vocab - whole) * (is_bfloat16 ? 2 : 4));
    }
    return total(sums);
}

INLINE void softmax_row(
    void *row, long target, long vocab, const int needs_shift, const int is_bfloat16, float *sum, float *loss
) {
    char rest[4 * LANES]; /* the target's logit, then its gradient */
    copy_rest(rest, row, target, target + 1, is_bfloat16);
    const vec logit = read(rest, 0, is_bfloat16);
    const float shift = needs_shift ? maximum(row, vocab, is_bfloat16) : 0;
    *sum = exponentiate(row, vocab, shift, needs_shift, is_bfloat16, 1);
    *loss = log(*sum) + ((double)shift - logit[0]);
    /* The difference of what may be near to each other is taken before it is rounded. */
    write(rest, 0, exponential(logit, shift, needs_shift) - *sum, is_bfloat16);
    memcpy(place(row, target, is_bfloat16), rest, is_bfloat16 ? 2 : 4);
}

/* Replaces the logits (num_rows, vocab), float32 or bfloat16, by (softmax - one-hot) * sums, sums being those of a row's
   exponentials: the gradient of the row's loss but for that factor. Losses are in nats; without shifts |logits| <= 87. */
void softmax_gradient(
    void *logits, int is_bfloat16, const int64_t *targets, long num_rows, long vocab, int needs_shift, float *sums, float *losses
) {
    for (long r = 0; r < num_rows; r++) {
        void *const row = place(logits, r * vocab, is_bfloat16);
        if (is_bfloat16 && needs_shift) softmax_row(row, targets[r], vocab, 1, 1, sums + r, losses + r);
        else if (is_bfloat16) softmax_row(row, targets[r], vocab, 0, 1, sums + r, losses + r);
        else if (needs_shift) softmax_row(row, targets[r], vocab, 1, 0, sums + r, losses + r);
        else softmax_row(row, targets[r], vocab, 0, 0, sums + r, losses + r);
    }
}

/* The largest of a row's float32 logits that are numbers, and the first word that has it: the best block, then the best in
   it. Several maxima at once keep the CPU busy while it waits for one. */
INLINE float largest(const float *row, long vocab, int64_t *word) {
    const long whole = vocab / LANES * LANES;
    float value = -INFINITY;
    *word = 0;
    for (long start = 0; start < whole; start += BLOCK) {
        const long end = start + BLOCK < whole ? start + BLOCK : whole;
        vec most[CHAINS];
        UNROLL for (int c = 0; c < CHAINS; c++) most[c] = (vec){0} - INFINITY;
        long v = start;
        for (; v + CHAINS * LANES <= end; v += CHAINS * LANES)
            UNROLL for (int c = 0; c < CHAINS; c++) most[c] = larger(load(row + v + c * LANES), most[c]);
        for (; v < end; v += LANES) most[0] = larger(load(row + v), most[0]);
        UNROLL for (int c = 1; c < CHAINS; c++) most[0] = larger(most[c], most[0]);
        for (int lane = 0; lane < LANES; lane++) {
            if (most[0][lane] > value) {
                value = most[0][lane];
                *word = start;
            }
        }
    }
    for (long v = whole; v < vocab; v++) {
        if (row[v] > value) {
            value = row[v];
            *word = v;
        }
    }
    while (row[*word] != value && *word < vocab - 1) ++*word;
    return value;
}

INLINE void score_row(
    float *row, const int64_t *targets, long num_targets, long vocab, const int needs_shift, float *losses, int64_t *word
) {
    const float most = largest(row, vocab, word), shift = needs_shift ? most : 0;
    const double log_sum = log(exponentiate(row, vocab, shift, needs_shift, 0, 0));
    for (long k = 0; k < num_targets; k++) losses[k] = log_sum + ((double)shift - row[targets[k]]);
}

/* Of each row of float32 logits (num_rows, vocab): the loss in nats against each of its num_targets targets, and the first
   word with the largest logit. The logits stay as they are; without shifts |logits| <= 87. */
void score(
    float *logits, const int64_t *targets, long num_rows, long num_targets, long vocab, int needs_shift, float *losses, int64_t *words
) {
    for (long r = 0; r < num_rows; r++) {
        float *const row = logits + r * vocab;
        const int64_t *const its_targets = targets + r * num_targets;
        if (needs_shift) score_row(row, its_targets, num_targets, vocab, 1, losses + r * num_targets, words + r);
        else score_row(row, its_targets, num_targets, vocab, 0, losses + r * num_targets, words + r);
    }
}

/* sums[i] += values[i], which are bfloat16. */
void accumulate(float *sums, const uint16_t *values, long size) {
    const long whole = size / LANES * LANES;
    for (long i = 0; i < whole; i += LANES) store(sums + i, load(sums + i) + read(values, i, 1));
    for (long i = whole; i < size; i++) {
        const uint32_t bits = (uint32_t)values[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        sums[i] += value;
    }
}
