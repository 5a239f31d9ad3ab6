/* What a step's metrics need of weights and hidden states, each in one pass (marble_sweep/metrics/step.py).

   The numbers are the same on every CPU. Sums are double, in LANES partial sums whatever vectors the CPU has, which are
   added up in a fixed order. A term is a float32 number or the product of two, and double holds both exactly: so it
   makes no difference whether the compiler fuses a product with the addition. Values are float32 or bfloat16. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define TOP 3
#define BLOCK 2048 /* numbers of some rows, which fit into the innermost cache */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double wide __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec values) { *(vec *)to = values; }
INLINE wide widened(vec values) { return __builtin_convertvector(values, wide); }
INLINE bits choose(ints mask, bits yes, bits no) { return ((bits)mask & yes) | (~(bits)mask & no); }
INLINE bits larger(bits one, bits other) { return choose(one > other, one, other); }

static inline long rows_of_block(long width) { return width < BLOCK ? BLOCK / width : 1; }

INLINE double total(wide values) {
    return ((values[0] + values[1]) + (values[2] + values[3])) + ((values[4] + values[5]) + (values[6] + values[7]));
}

/* LANES values from values[at] on, in float32. Of fewer than LANES only `count` are there; the rest are zero. */
INLINE vec values_at(const void *values, int is_bf16, long at, long count) {
    halves narrow = {0};
    vec whole = {0};
    if (is_bf16) {
        const uint16_t *const from = (const uint16_t *)values + at;
        if (count >= LANES) narrow = *(const halves *)from;
        else memcpy(&narrow, from, sizeof *from * count);
        return (vec)(__builtin_convertvector(narrow, bits) << 16);
    }
    const float *const from = (const float *)values + at;
    if (count >= LANES) return load(from);
    memcpy(&whole, from, sizeof *from * count);
    return whole;
}

static inline void load_values(const void *values, int is_bf16, long first, long count, float *out) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, values_at(values, is_bf16, first + i, LANES));
    if (i < count) store(out + i, values_at(values, is_bf16, first + i, count - i));
}

/* To nearest, ties to even; NaN stays what it is. */
INLINE vec rounded_to_bf16(vec values) {
    const bits exact = (bits)values, rounded = (exact + 0x7FFF + (exact >> 16 & 1)) & 0xFFFF0000;
    return (vec)choose(values == values, rounded, exact);
}

static inline void load_weights(const void *weights, int is_bf16, long first, long count, float *out) {
    load_values(weights, is_bf16, first, count, out);
    for (long i = 0; i < count && !is_bf16; i += LANES) store(out + i, rounded_to_bf16(load(out + i)));
}

/* |after - before| / ULP(before): lattice_displacement of marble_sweep/metrics/lattice.py, operation by operation. */
INLINE vec cells(vec before, vec after) {
    const bits smallest = (bits){0} + 0x00800000; /* 2^-126 */
    const vec power = (vec)larger((bits)before & 0x7F800000, smallest);
    return (vec)((bits)((after - before) / power * 128) & 0x7FFFFFFF);
}

INLINE double dot(const float *one, const float *other, long width) {
    wide sums = {0};
    double sum = 0;
    long d = 0;
    for (; d + LANES <= width; d += LANES) sums += widened(load(one + d)) * widened(load(other + d));
    UNROLL for (; d < width; d++) sum += (double)one[d] * other[d];
    return width < LANES ? sum : total(sums) + sum;
}

INLINE double sum_of(const float *values, long width) {
    wide sums = {0};
    double sum = 0;
    long d = 0;
    for (; d + LANES <= width; d += LANES) sums += widened(load(values + d));
    UNROLL for (; d < width; d++) sum += values[d];
    return width < LANES ? sum : total(sums) + sum;
}

/* The largest of numbers that are not negative; NaN where there is one. Their bits have the same order, NaN above all. */
INLINE float largest_of(const float *values, long width) {
    bits most = {0};
    uint32_t largest = 0, bit;
    float value;
    long d = 0;
    for (; d + LANES <= width; d += LANES) most = larger((bits)load(values + d), most);
    if (width >= LANES)
        UNROLL for (int lane = 0; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
    UNROLL for (; d < width; d++) {
        memcpy(&bit, values + d, sizeof bit);
        largest = bit > largest ? bit : largest;
    }
    memcpy(&value, &largest, sizeof value);
    return value;
}

INLINE void add_to(double *sums, const float *values, long width) {
    long d = 0;
    for (; d + LANES <= width; d += LANES) *(wide *)(sums + d) += widened(load(values + d));
    for (; d < width; d++) sums[d] += values[d];
}

typedef struct {
    int64_t early, midlife, late, frozen, dead_moving, live_moving; /* tokens: dead ones by regime, those that moved */
    double l1, linf;       /* of the dead, in cells: the sum over them, and the farthest that one went */
    int64_t tokens[TOP];   /* whose rows have the largest products with h_mean; of equal ones the lower number */
    double logits[TOP];    /* these products, largest first */
} Motion;

INLINE void add_linf(Motion *motion, double linf) {
    if (!(linf <= motion->linf) && !isnan(motion->linf)) motion->linf = linf;
}

INLINE void count_dead(Motion *motion, const float *row, long width) {
    const double l1 = sum_of(row, width), linf = largest_of(row, width);
    motion->l1 += l1;
    add_linf(motion, linf);
    motion->dead_moving += l1 > 0;
    motion->frozen += l1 == 0;
    motion->late += l1 > 0 && linf <= 1;
    if (linf > 1) {
        /* Near the boundary no cell is more than sqrt(width), so they are multiples of a power of two that is large
           enough for double to hold their squares and the sum of these. */
        const int is_local = dot(row, row, width) <= width;
        motion->midlife += is_local;
        motion->early += !is_local;
    }
}

INLINE void rank(Motion *motion, double logit, int64_t token) {
    if (isnan(logit)) logit = INFINITY; /* as torch's topk has it */
    int place = TOP;
    while (place > 0 && (logit > motion->logits[place - 1] || motion->tokens[place - 1] < 0)) place--;
    for (int next = TOP - 1; next > place; next--) {
        motion->logits[next] = motion->logits[next - 1];
        motion->tokens[next] = motion->tokens[next - 1];
    }
    if (place == TOP) return;
    motion->logits[place] = logit;
    motion->tokens[place] = token;
}

INLINE void move_rows(
    const void *before, const void *after, int is_bf16, long first, long last, long width, const uint8_t *is_dead,
    const float *mean, Motion *motion
) {
    const long block = rows_of_block(width);
    float rows[block * width + LANES], distance[block * width + LANES];
    for (long start = first; start < last; start += block) {
        const long num_rows = last - start < block ? last - start : block;
        load_weights(before, is_bf16, start * width, num_rows * width, distance);
        load_weights(after, is_bf16, start * width, num_rows * width, rows);
        for (long i = 0; i < num_rows * width; i += LANES) store(distance + i, cells(load(distance + i), load(rows + i)));
        for (long row = 0; row < num_rows; row++) {
            if (is_dead[start + row]) count_dead(motion, distance + row * width, width);
            else motion->live_moving += !(largest_of(distance + row * width, width) == 0);
            rank(motion, dot(rows + row * width, mean, width), start + row);
        }
    }
}

/* How the rows [first, last) of the embedding (V, width) moved. Weights in float32 are rounded to bfloat16. is_dead (V,)
   says which tokens are dead, mean (width,) is h_mean. */
void embedding_motion(
    const void *before, const void *after, int is_bf16, long first, long last, long width, const uint8_t *is_dead,
    const float *mean, Motion *motion
) {
    *motion = (Motion){.tokens = {-1, -1, -1}};
    switch (width) { /* loops whose number of turns is known are unrolled */
    case 2: move_rows(before, after, is_bf16, first, last, 2, is_dead, mean, motion); break;
    case 3: move_rows(before, after, is_bf16, first, last, 3, is_dead, mean, motion); break;
    case 4: move_rows(before, after, is_bf16, first, last, 4, is_dead, mean, motion); break;
    default: move_rows(before, after, is_bf16, first, last, width, is_dead, mean, motion);
    }
}

/* Adds the motion of the next rows to that of all rows before. */
void add_motion(Motion *all, const Motion *next) {
    all->early += next->early;
    all->midlife += next->midlife;
    all->late += next->late;
    all->frozen += next->frozen;
    all->dead_moving += next->dead_moving;
    all->live_moving += next->live_moving;
    all->l1 += next->l1;
    add_linf(all, next->linf);
    for (int place = 0; place < TOP && next->tokens[place] >= 0; place++) rank(all, next->logits[place], next->tokens[place]);
}

/* L1, L2 and L-infinity of how far rows moved in cells, and the L2 norm of their change: (rows, 4). */
void motion_norms(
    const void *before, const void *after, int is_bf16, long num_rows, long width, float (*norms)[4]
) {
    float from[width + LANES], to[width + LANES], moved[width + LANES];
    for (long row = 0; row < num_rows; row++, norms++) {
        load_values(before, is_bf16, row * width, width, from);
        load_values(after, is_bf16, row * width, width, to);
        for (long i = 0; i < width; i += LANES) store(moved + i, load(to + i) - load(from + i));
        (*norms)[3] = (float)sqrt(dot(moved, moved, width));
        for (long i = 0; i < width; i += LANES)
            store(moved + i, cells(rounded_to_bf16(load(from + i)), rounded_to_bf16(load(to + i))));
        (*norms)[0] = (float)sum_of(moved, width);
        (*norms)[1] = (float)sqrt(dot(moved, moved, width));
        (*norms)[2] = largest_of(moved, width);
    }
}

/* The sum of the squares of the values [first, last). */
double squared_norm(const void *values, int is_bf16, long first, long last) {
    wide sums = {0};
    vec terms;
    long at = first;
    for (; at + LANES <= last; at += LANES) {
        terms = values_at(values, is_bf16, at, LANES);
        sums += widened(terms) * widened(terms);
    }
    if (at < last) {
        terms = values_at(values, is_bf16, at, last - at);
        sums += widened(terms) * widened(terms);
    }
    return total(sums);
}

typedef struct {
    const void *directions, *before, *after;
    int directions_are_bf16, is_bf16, decays;
    long offset;
} Updates;

INLINE void count_lanes(const Updates *of, long at, long count, ints *intended, ints *changed) {
    const vec before = values_at(of->before, of->is_bf16, of->offset + at, count);
    const vec after = values_at(of->after, of->is_bf16, of->offset + at, count);
    ints meant = values_at(of->directions, of->directions_are_bf16, at, count) != 0;
    if (of->decays) meant |= before != 0;
    *intended -= meant;
    *changed -= meant & (after - before != 0);
}

/* Of the weights whose directions are [first, last), how many are to change, and how many of these did. To change are
   those with a direction that is not zero, and if weights decay, those that are not zero. directions[0] is that of
   the weight `offset`. */
void count_updates(
    const void *directions, int directions_are_bf16, const void *before, const void *after, int is_bf16, int decays,
    long offset, long first, long last, int64_t counts[2]
) {
    const Updates of = {directions, before, after, directions_are_bf16, is_bf16, decays, offset};
    ints intended = {0}, changed = {0};
    long at = first;
    for (; at + LANES <= last; at += LANES) count_lanes(&of, at, LANES, &intended, &changed);
    if (at < last) count_lanes(&of, at, last - at, &intended, &changed);
    counts[0] = counts[1] = 0;
    for (int lane = 0; lane < LANES; lane++) {
        counts[0] += intended[lane];
        counts[1] += changed[lane];
    }
}

/* NaN where one is zero. */
INLINE double cosine(const float *one, const float *other, long width) {
    return dot(one, other, width) / (sqrt(dot(one, one, width)) * sqrt(dot(other, other, width)));
}

/* The cosines of `mean` with the rows `last` and `oldest` of the history (lag, width); it then takes the oldest one's place. */
void remember(float *history, long width, long last, long oldest, const float *mean, double cosines[2]) {
    cosines[0] = cosine(history + last * width, mean, width);
    cosines[1] = cosine(history + oldest * width, mean, width);
    memcpy(history + oldest * width, mean, sizeof *mean * width);
}

/* Of hidden states (num_rows, width): their mean (width,), and their mean norm and mean cosine with that mean. */
void summarise(
    const void *hidden, int is_bf16, long num_rows, long width, float *mean, double *mean_norm, double *mean_cosine
) {
    const long block = rows_of_block(width);
    double sums[width];
    float rows[block * width + LANES];
    memset(sums, 0, sizeof sums);
    for (long start = 0; start < num_rows; start += block) {
        const long count = num_rows - start < block ? num_rows - start : block;
        load_values(hidden, is_bf16, start * width, count * width, rows);
        for (long row = 0; row < count; row++) add_to(sums, rows + row * width, width);
    }
    for (long d = 0; d < width; d++) mean[d] = (float)(sums[d] / num_rows);
    const double norm_of_mean = sqrt(dot(mean, mean, width));
    *mean_norm = *mean_cosine = 0;
    for (long start = 0; start < num_rows; start += block) {
        const long count = num_rows - start < block ? num_rows - start : block;
        load_values(hidden, is_bf16, start * width, count * width, rows);
        for (long row = 0; row < count; row++) {
            const float *const vector = rows + row * width;
            const double norm = sqrt(dot(vector, vector, width));
            *mean_norm += norm;
            *mean_cosine += dot(vector, mean, width) / (norm * norm_of_mean);
        }
    }
    *mean_norm /= num_rows;
    *mean_cosine /= num_rows;
}

enum { NEAREST, TWICE, STOCHASTIC, MASTERS }; /* Rounding of marble_sweep/metrics/intended.py */
enum { WHOLE, GRADIENT, DECAY, LOST, DECAYS, NUM_COUNTS };
#define BIN_SHIFT 20
#define FIRST_BIN ((127 - 24) << 3)
#define NUM_BINS 384

typedef struct {
    int64_t entries[NUM_COUNTS]; /* below half a cell by the whole update, its gradient, its decay; decays lost; decays */
    double moving;               /* tokens that move, or are expected to */
    int64_t histogram[NUM_BINS]; /* entries by their update in cells */
} CellCounts;

typedef struct {
    const void *before;
    const float *target;
    int is_bf16;
    float decay, kept; /* of a weight: what a step takes, and 1 less that */
} Intended;

typedef struct {
    ints counts[NUM_COUNTS];
    ints moved;
    vec stays; /* how likely no entry moves, with stochastic rounding */
} RowCounts;

/* Weights on the bfloat16 lattice, and what turns an update of them into cells. */
typedef struct {
    vec weights;
    vec to_cells; /* one over the power of two below the weight, with which a product is as exact as the quotient */
    ints is_power;
    vec threshold; /* an update of more cells than this moves the weight */
} Lattice;

/* Of neighbouring entries with the same bin, one after the other would have to wait for the one before. */
#define HISTOGRAMS 4
typedef uint32_t Histograms[HISTOGRAMS][NUM_BINS];

INLINE vec magnitude(vec values) { return (vec)((bits)values & 0x7FFFFFFF); }

INLINE Lattice lattice_at(vec weights) {
    const vec power = (vec)larger((bits)weights & 0x7F800000, (bits){0} + 0x00800000);
    const ints is_odd = ((bits)weights & 0x10000) != 0;
    const bits half = (bits){0} + 0x3F000000; /* at exactly half a cell, an odd mantissa moves to the even one */
    return (Lattice){weights, 1 / power, (magnitude(weights) == power) & (power > 0x1p-126f), (vec)(half + (bits)is_odd)};
}

/* in_cells of intended.py: an update in cells. */
INLINE vec update_in_cells(vec update, const Lattice *lattice) {
    const ints towards_zero = (ints)((bits)update ^ (bits)lattice->weights) >> 31;
    const vec in_cells = magnitude(update) * lattice->to_cells * 128;
    return (vec)choose(towards_zero & lattice->is_power, (bits)(in_cells * 2), (bits)in_cells);
}

/* -1 where `moves` of intended.py is false, also for NaN. */
INLINE ints stays_put(vec in_cells, const Lattice *lattice) { return ~(in_cells > lattice->threshold); }

INLINE void count_intended(
    const Intended *of, const int rounding, long at, const long count, RowCounts *row, Histograms histograms
) {
    const vec exact = values_at(of->before, of->is_bf16, at, count), target = values_at(of->target, 0, at, count);
    const Lattice lattice = lattice_at(rounded_to_bf16(exact));
    const vec decay = exact * -of->decay, start = rounding == TWICE ? rounded_to_bf16(exact * of->kept) : exact;
    const vec change = target - start;
    const vec gradient = rounding == TWICE ? change : (vec)(change - decay);
    const vec whole = rounding == TWICE ? (vec)(change + decay) : change;
    const vec in_cells = update_in_cells(whole, &lattice);
    const ints below = stays_put(in_cells, &lattice), decays = decay != 0;
    ints is_there = {0}, lost;
    int32_t bins[LANES];
    for (int lane = 0; lane < LANES; lane++) is_there[lane] = lane < count ? -1 : 0;
    if (rounding == TWICE) lost = start == exact;
    else if (rounding == MASTERS) lost = exact + decay == exact;
    else lost = rounded_to_bf16(target) == rounded_to_bf16(target - decay);
    row->counts[WHOLE] -= below & is_there;
    row->counts[GRADIENT] -= stays_put(update_in_cells(gradient, &lattice), &lattice) & is_there;
    row->counts[DECAY] -= stays_put(update_in_cells(decay, &lattice), &lattice) & is_there;
    row->counts[LOST] -= lost & decays & is_there;
    row->counts[DECAYS] -= decays & is_there;
    if (rounding == STOCHASTIC) row->stays *= 1 - (vec)choose(in_cells < 1, (bits)in_cells, (bits)((vec){0} + 1));
    else if (rounding == NEAREST) row->moved |= ~below & is_there;
    else row->moved |= (rounded_to_bf16(target) != lattice.weights) & is_there;
    ints bin = ((ints)in_cells >> BIN_SHIFT) - FIRST_BIN;
    bin = (ints)choose(bin > 0, (bits)bin, (bits){0});
    bin = (ints)choose(bin < NUM_BINS, (bits)bin, (bits){0} + (NUM_BINS - 1));
    memcpy(bins, &bin, sizeof bins);
    for (int lane = 0; lane < LANES && lane < count; lane++) histograms[lane % HISTOGRAMS][bins[lane]]++;
}

INLINE void count_rows(
    const Intended *of, const int rounding, long first, long last, long width, const uint8_t *is_dead, CellCounts counts[2]
) {
    Histograms histograms[2] = {0}; /* of a part's entries, which uint32_t can count */
    for (long token = first; token < last; token++) {
        CellCounts *const kind = counts + !is_dead[token];
        RowCounts row = {.stays = (vec){0} + 1};
        long d = 0;
        for (; d + LANES <= width; d += LANES)
            count_intended(of, rounding, token * width + d, LANES, &row, histograms[!is_dead[token]]);
        if (d < width) count_intended(of, rounding, token * width + d, width - d, &row, histograms[!is_dead[token]]);
        double stays = 1;
        int moved = 0;
        for (int lane = 0; lane < LANES; lane++) {
            for (int count = 0; count < NUM_COUNTS; count++) kind->entries[count] += row.counts[count][lane];
            stays *= row.stays[lane];
            moved |= row.moved[lane];
        }
        kind->moving += rounding == STOCHASTIC ? 1 - stays : moved != 0;
    }
    for (int kind = 0; kind < 2; kind++)
        for (int part = 0; part < HISTOGRAMS; part++)
            for (int bin = 0; bin < NUM_BINS; bin++) counts[kind].histogram[bin] += histograms[kind][part][bin];
}

/* Adds what a step meant to do with the rows [first, last) of a table (V, width) to the counts of the dead tokens and of
   the live ones. intended.py says what is counted, and how. */
void intended_update(
    const void *before, const float *target, int is_bf16, int rounding, double decay, long first, long last, long width,
    const uint8_t *is_dead, CellCounts counts[2]
) {
    const Intended of = {before, target, is_bf16, (float)decay, (float)(1 - decay)};
    switch (rounding) {
    case NEAREST: count_rows(&of, NEAREST, first, last, width, is_dead, counts); break;
    case TWICE: count_rows(&of, TWICE, first, last, width, is_dead, counts); break;
    case STOCHASTIC: count_rows(&of, STOCHASTIC, first, last, width, is_dead, counts); break;
    default: count_rows(&of, MASTERS, first, last, width, is_dead, counts);
    }
}
