/* What the forward and the backward scan share: the arguments, the walk over the grid, packed chunks, inner loops.

   A task is one (image, head, scan order). It walks its tokens in chunks. What the inner loops read of a chunk is first
   copied to small padded float buffers, so the loops know nothing of the index map, bfloat16 or odd widths. A block of
   the state stays in registers while it passes over the chunk. Shapes in brackets: T tokens of a chunk, K key and V
   value channels.

   Where there are more threads than tasks, a head's value channels are cut into `share` blocks. Each block is scanned
   as a head of its own, with the queries, decays and keys of the whole head. Only the LayerNorm needs whole heads; it
   runs after the scan. */

#ifndef METALA_SCAN_H
#define METALA_SCAN_H

#include <stdlib.h>

#include "simd.h"

#define CHUNK 16   /* tokens packed at a time; with K = 32, V = 64 buffers and state take half of a 48 kB L1 */
#define SEGMENT 64 /* tokens between two states that the backward pass keeps */
#define ROWS 8     /* rows of the state kept in registers at a time */
#define PADDED (LANES > ROWS ? LANES : ROWS) /* channels are padded to whole vectors and whole blocks of ROWS */
#define GATE_FLOOR (-5.0f)

enum { ROW, ROW_REVERSE, COLUMN, COLUMN_REVERSE };

/* A tensor [batch, token, head, channel], float or bfloat16, channels contiguous; strides in elements. */
typedef struct {
    void *data;
    int64_t batch, token, head;
} tensor;

/* The first part of every call; kernels/cpu.py mirrors it field by field. */
typedef struct {
    int64_t batch, heads, rows, cols, key, value;
    int64_t orders, order[4];
    int64_t share;     /* blocks of V of one head, which share q and k; `heads` counts blocks, `value` their channels */
    int64_t threads;
    int64_t half;      /* q, decay, k, v, z and out are bfloat16; accumulators always float */
    int64_t logits;    /* `decay` holds logits: log_decay = logsigmoid(logits) * root, with root = decay_scale / 16 */
    int64_t gated;     /* self-augmentation, LayerNorm and gate follow the scan */
    float scale, root, eps;
    tensor q, decay, k, v, z;
    const float *gate_bias;  /* [H * V] */
    const float *aug_weight; /* [H * K] */
} problem;

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t key_width(const problem *p) { return round_up(p->key, PADDED); }
INLINE int64_t value_width(const problem *p) { return round_up(p->value, PADDED); }
INLINE int64_t tokens_of(const problem *p) { return p->rows * p->cols; }
INLINE int64_t at_token(const tensor *x, int64_t b, int64_t token, int64_t h)
{
    return b * x->batch + token * x->token + h * x->head;
}

/* `at_token` in a tensor of whole heads, where `h` is a block of one head: at its K channels, or at its part of V. */
INLINE int64_t at_key(const problem *p, const tensor *x, int64_t b, int64_t token, int64_t h)
{
    return at_token(x, b, token, h / p->share);
}
INLINE int64_t at_value(const problem *p, const tensor *x, int64_t b, int64_t token, int64_t h)
{
    return at_token(x, b, token, h / p->share) + h % p->share * p->value;
}

/* The same problem in whole heads, for the LayerNorm. */
INLINE problem with_whole_heads(problem p)
{
    p.heads /= p.share;
    p.value *= p.share;
    p.share = 1;
    return p;
}

/* [B, N, H * V] of floats. */
INLINE tensor packed_values(const problem *p, const float *data)
{
    int64_t row = p->heads * p->value;
    return (tensor){(void *)data, tokens_of(p) * row, row, p->share * p->value};
}

/* Row-major indices of the tokens that `order` visits at `count` steps from `begin`. */
INLINE void walk(const problem *p, int order, int64_t begin, int count, int64_t *token)
{
    int64_t forwards = order == ROW || order == COLUMN ? 1 : -1;
    int64_t step = forwards == 1 ? begin : tokens_of(p) - 1 - begin;
    int64_t row = step % p->rows, col = step / p->rows;
    for (int t = 0; t < count; t++) {
        if (order == ROW || order == ROW_REVERSE) {
            token[t] = step + forwards * t;
            continue;
        }
        token[t] = row * p->cols + col;
        row += forwards;
        if (row == p->rows || row < 0) {
            row = row < 0 ? p->rows - 1 : 0;
            col += forwards;
        }
    }
}

INLINE int64_t token_at(const problem *p, int order, int64_t step)
{
    int64_t token;
    walk(p, order, step, 1, &token);
    return token;
}

/* Orders that may run at once. The two directions of an axis start at opposite ends and touch disjoint halves of the
   tokens, first their own (part 0), then the other's (part 1), so they add into one output without a lock or a copy. */
typedef struct {
    int first, count;
} phase_orders;

INLINE phase_orders next_phase(const problem *p, int first)
{
    int pair = first + 1 < p->orders && p->order[first] / 2 == p->order[first + 1] / 2;
    return (phase_orders){first, pair ? 2 : 1};
}

/* Steps [0, split) are part 0 of an order, the rest part 1. */
INLINE int64_t split_of(const problem *p, phase_orders phase, int order)
{
    int64_t n = tokens_of(p), half = n / 2 / SEGMENT * SEGMENT;
    if (phase.count == 1)
        return n;
    return order == phase.first ? half : n - half;
}

INLINE void fetch(const tensor *x, int64_t at, int64_t half, int64_t n)
{
    const char *from = (const char *)x->data + (half ? 2 : 4) * at;
    for (int64_t i = 0; i < (half ? 2 : 4) * n; i += 64)
        __builtin_prefetch(from + i);
}

/* a = exp(g) and the key 1 - exp(g), from one exponential and without cancellation. */
INLINE void gate(const problem *p, vec x, vec *a, vec *k)
{
    x = p->logits ? log_sigmoid(x) * p->root : at_most(x, 0.0f);
    exp_parts e = split_exp(at_least(x, GATE_FLOOR));
    *a = e.power * e.rest + e.power;
    *k = -(e.power * e.rest + (e.power - 1.0f));
}

/* Vectors of a row of the state kept in registers at a time, beside ROWS rows. */
#define WIDE 2

INLINE float *floats(int64_t n) { return aligned_alloc(64, (size_t)round_up(n * 4, 64)); }

#endif
