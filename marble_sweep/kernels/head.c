/* Cross-entropy of softmax(h W^T) and both of its gradients, for a width known when this is compiled (-DWIDTH=4).

   ROWS rows of h are taken at a time. Their exponentials fill a buffer that stays in the CPU's cache, and both
   gradients are made from it. W comes transposed, (WIDTH, padded), so that neighbouring words are neighbours in
   memory, with zeros from `vocab` up to `padded`, a multiple of MOST_LANES. The order of every sum is written out, and no
   compiler flag lets it be changed. */

#include "vectors.h"

#define ROWS 8
#define BLOCK (32 * LANES) /* words whose weights and exponentials fit into the innermost cache */
/* Rows that share a pass over W in the gradient of h: their sums must fit into the registers. */
#define SHARED (WIDTH <= 2 ? 8 : WIDTH <= 5 ? 4 : WIDTH <= 10 ? 2 : 1)

/* The logits of one row for the words of one vector. */
static inline vec logits_of(const float *h, const vec *w) {
    vec logits = h[0] * w[0];
    UNROLL for (int d = 1; d < WIDTH; d++) logits += h[d] * w[d];
    return logits;
}

static void row_maxima(float h[ROWS][WIDTH], const float *weight, long vocab, long padded, float *maxima) {
    vec most[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) most[r] = (vec){0} - INFINITY;
    for (long v = 0; v < padded; v += LANES) {
        vec w[WIDTH];
        const ints mask = present(v, vocab);
        UNROLL for (int d = 0; d < WIDTH; d++) w[d] = load(weight + d * padded + v);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const vec logits = logits_of(h[r], w);
            most[r] = choose((logits > most[r]) & mask, logits, most[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        maxima[r] = -INFINITY;
        for (int lane = 0; lane < LANES; lane++) maxima[r] = fmaxf(maxima[r], most[r][lane]);
    }
}

/* exponentials[r][v] = 2^(h[r] . w[v] - shifts[r]), and each row's sum of them. Without shifts they are zero. */
static inline __attribute__((always_inline)) void exponentiate(
    float h[ROWS][WIDTH], const float *restrict weight, const float *shifts, long vocab, long padded,
    float *restrict exponentials, float *sums
) {
    for (int r = 0; r < ROWS; r++) sums[r] = 0;
    for (long start = 0; start < padded; start += BLOCK) {
        const long end = start + BLOCK < padded ? start + BLOCK : padded;
        vec block_sums[ROWS] = {{0}};
        for (long v = start; v < end; v += LANES) {
            vec w[WIDTH];
            UNROLL for (int d = 0; d < WIDTH; d++) w[d] = load(weight + d * padded + v);
            UNROLL for (int r = 0; r < ROWS; r++) {
                vec x = logits_of(h[r], w);
                if (shifts) {
                    x -= shifts[r];
                    x = choose(x < -126, (vec){0} - 126, x);
                }
                vec e = exp2_of(x);
                if (v + LANES > vocab) e = choose(present(v, vocab), e, (vec){0});
                block_sums[r] += e;
                store(exponentials + r * padded + v, e);
            }
        }
        for (int r = 0; r < ROWS; r++) sums[r] += total(block_sums[r]);
    }
}

/* grad_h[r] += sum over the block's words of terms[r][v] w[v]. */
static inline void add_to_grad_h(
    const float *restrict terms, const float *restrict weight, long start, long end, long padded, float grad_h[ROWS][WIDTH]
) {
    for (int first = 0; first < ROWS; first += SHARED) {
        vec sums[SHARED][WIDTH] = {{{0}}};
        for (long v = start; v < end; v += LANES) {
            vec term[SHARED];
            UNROLL for (int r = 0; r < SHARED; r++) term[r] = load(terms + (first + r) * padded + v);
            UNROLL for (int d = 0; d < WIDTH; d++) {
                const vec w = load(weight + d * padded + v);
                UNROLL for (int r = 0; r < SHARED; r++) sums[r][d] += term[r] * w;
            }
        }
        for (int r = 0; r < SHARED; r++)
            for (int d = 0; d < WIDTH; d++) grad_h[first + r][d] += total(sums[r][d]);
    }
}

/* grad_weight[:, v] += sum over rows of terms[r][v] h[r]. */
static inline void add_to_grad_weight(
    const float *restrict terms, float h[ROWS][WIDTH], long start, long end, long padded, float *restrict grad_weight
) {
    for (long v = start; v < end; v += LANES) {
        vec term[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) term[r] = load(terms + r * padded + v);
        UNROLL for (int d = 0; d < WIDTH; d++) {
            vec sum = term[0] * h[0][d];
            UNROLL for (int r = 1; r < ROWS; r++) sum += term[r] * h[r][d];
            store(grad_weight + d * padded + v, load(grad_weight + d * padded + v) + sum);
        }
    }
}

static void rows_gradients(
    const float *hidden, const float *weight, const int64_t *targets, long rows, long padded,
    const float *sums, float *exponentials, float *grad_hidden, float *grad_weight
) {
    float scaled[ROWS][WIDTH] = {{0}}, grad_h[ROWS][WIDTH] = {{0}};
    for (long r = 0; r < rows; r++) {
        exponentials[r * padded + targets[r]] -= sums[r]; /* softmax - one-hot, times the sum */
        for (int d = 0; d < WIDTH; d++) scaled[r][d] = hidden[r * WIDTH + d] / sums[r];
    }
    for (long start = 0; start < padded; start += BLOCK) {
        const long end = start + BLOCK < padded ? start + BLOCK : padded;
        add_to_grad_h(exponentials, weight, start, end, padded, grad_h);
        add_to_grad_weight(exponentials, scaled, start, end, padded, grad_weight);
    }
    for (long r = 0; r < rows; r++)
        for (int d = 0; d < WIDTH; d++) grad_hidden[r * WIDTH + d] = grad_h[r][d] / sums[r];
}

/* The losses of `num_rows` rows added up, in nats, and the gradients of that sum: grad_hidden (num_rows, WIDTH) and
   grad_weight (WIDTH, padded), neither where grad_hidden is null. buffer holds ROWS * padded numbers. */
double head(
    const float *hidden, const float *weight, const int64_t *targets, long num_rows, long vocab, long padded,
    int needs_shift, float *buffer, float *grad_hidden, float *grad_weight
) {
    double loss = 0;
    if (grad_hidden) memset(grad_weight, 0, sizeof(float) * WIDTH * padded);
    for (long start = 0; start < num_rows; start += ROWS) {
        const long rows = num_rows - start < ROWS ? num_rows - start : ROWS;
        const float *const first = hidden + start * WIDTH;
        float h[ROWS][WIDTH] = {{0}}, maxima[ROWS] = {0}, sums[ROWS]; /* what is missing of the last rows is zero */
        for (long i = 0; i < rows * WIDTH; i++) h[i / WIDTH][i % WIDTH] = first[i] * (float)M_LOG2E;
        if (needs_shift) {
            row_maxima(h, weight, vocab, padded, maxima);
            exponentiate(h, weight, maxima, vocab, padded, buffer, sums);
        } else {
            exponentiate(h, weight, 0, vocab, padded, buffer, sums);
        }
        for (long r = 0; r < rows; r++) {
            float logit = 0;
            for (int d = 0; d < WIDTH; d++) logit += h[r][d] * weight[d * padded + targets[start + r]];
            loss += log(sums[r]) + M_LN2 * ((double)maxima[r] - logit);
        }
        if (grad_hidden)
            rows_gradients(first, weight, targets + start, rows, padded, sums, buffer, grad_hidden + start * WIDTH, grad_weight);
    }
    return loss;
}

/* Copies rows of WIDTH float32 or bfloat16 numbers to out[row * row_stride + column * column_stride], in float32.
   Returns the largest sum of a row's squares; NaN where there is one. */
float widen(const void *values, int is_bfloat16, long rows, long row_stride, long column_stride, float *out) {
    float largest = 0;
    for (long row = 0; row < rows; row++) {
        float square = 0;
        for (long d = 0; d < WIDTH; d++) {
            float value;
            if (is_bfloat16) {
                const uint32_t bits = (uint32_t)((const uint16_t *)values)[row * WIDTH + d] << 16;
                memcpy(&value, &bits, sizeof value);
            } else {
                value = ((const float *)values)[row * WIDTH + d];
            }
            square += value * value;
            out[row * row_stride + d * column_stride] = value;
        }
        if (!(square <= largest) && !isnan(largest)) largest = square;
    }
    return largest;
}

/* grad_weight (vocab, WIDTH) = the sum of num_parts gradients (num_parts, WIDTH, padded), in their order. */
void add_up(const float *parts, long num_parts, long vocab, long padded, float *grad_weight) {
    for (long v = 0; v < padded; v += LANES) {
        for (int d = 0; d < WIDTH; d++) {
            vec sum = load(parts + d * padded + v);
            for (long part = 1; part < num_parts; part++) sum += load(parts + (part * WIDTH + d) * padded + v);
            for (long lane = 0; lane < LANES && v + lane < vocab; lane++) grad_weight[(v + lane) * WIDTH + d] = sum[lane];
        }
    }
}
