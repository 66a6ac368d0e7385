/* The forward scan, and the gated output of a MetaLA layer as its epilogue. */

#include "scan.h"

/* ---- one chunk of one head

   The format is passed on, so that for the models' heads, K 32 and V 64, the compiler sees constants and unrolls. */

typedef struct {
    int64_t key, value, kw, vw, half; /* channels, the same padded, and whether the inputs are bfloat16 */
} format;

/* Within STRIDE tokens the forward scan keeps the state divided by the decay since the first of them, which saves a
   multiplication per element. With gates above the floor the divisor stays above exp(-40), and no later token enters
   it. */
#define STRIDE 8
#define STRIDES (CHUNK / STRIDE)

/* A thread's buffers, and where the rows of the chunk are: `from` and `to` hold the sums over the orders. */
typedef struct {
    float *x, *y;    /* [T, K]: x is query times divisor times scale, y is key over divisor */
    float *decay;    /* [STRIDES, K]: the divisor at the end of each stride */
    float *v, *sums; /* [T, V] */
    float *zeros;    /* [V] */
    float *aug_weight, *bias;
    float own[CHUNK], aug[CHUNK]; /* q k of the token itself, and q k w */
    const float *from[CHUNK];
    float *packed[CHUNK], *to[CHUNK];
} forward_scratch;

INLINE int64_t forward_scratch_floats(const problem *p)
{
    return (2 * CHUNK + STRIDES + 1) * key_width(p) + (2 * CHUNK + 2) * value_width(p) * p->share;
}

static forward_scratch forward_layout(const problem *p, float *at)
{
    int64_t kw = key_width(p), vw = value_width(p) * p->share; /* whole heads: for gate_chunk */
    forward_scratch s = {.x = at, .y = at + CHUNK * kw, .decay = at + 2 * CHUNK * kw};
    s.aug_weight = s.decay + STRIDES * kw;
    s.v = s.aug_weight + kw;
    s.sums = s.v + CHUNK * vw;
    s.zeros = s.sums + CHUNK * vw;
    s.bias = s.zeros + vw;
    return s;
}

INLINE void scaled_block(int length, int64_t rows, int64_t lanes, int wide, const float *x, const float *decay,
                         const float *y, const float *w, const float *const *from, float *const *to, int64_t lane,
                         float *state)
{
    vec s[ROWS][WIDE];
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            s[r][l] = load(state + r * lanes + l * LANES);
    for (int begin = 0; begin < length; begin += STRIDE, decay += rows) {
        int end = begin + STRIDE < length ? begin + STRIDE : length;
        for (int t = begin; t < end; t++) {
            const float *xt = x + t * rows, *yt = y + t * rows;
            vec o[WIDE], wt[WIDE];
            for (int l = 0; l < wide; l++) {
                o[l] = load(from[t] + lane + l * LANES);
                wt[l] = load(w + t * lanes + l * LANES);
            }
            for (int r = 0; r < ROWS; r++)
                for (int l = 0; l < wide; l++) {
                    o[l] += xt[r] * s[r][l];
                    s[r][l] += yt[r] * wt[l];
                }
            for (int l = 0; l < wide; l++)
                store(to[t] + lane + l * LANES, o[l]);
        }
        for (int r = 0; r < ROWS; r++)
            for (int l = 0; l < wide; l++)
                s[r][l] *= decay[r];
    }
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            store(state + r * lanes + l * LANES, s[r][l]);
}

/* to = from + x S for every token, and the state behind the chunk. The sums pass from one block of rows to the next in
   `packed`: in the output itself, one row of the grid can lie a whole way of the cache from the next. */
INLINE void scan_scaled(int length, format n, const forward_scratch *s, float *state)
{
    const float *const *packed = (const float *const *)s->packed;
    for (int64_t l = 0; l < n.vw; l += WIDE * LANES)
        for (int64_t r = 0; r < n.kw; r += ROWS) {
            const float *const *from = r == 0 ? s->from : packed;
            float *const *to = r + ROWS < n.kw ? s->packed : s->to, *block = state + r * n.vw + l;
            if (l + WIDE * LANES <= n.vw)
                scaled_block(length, n.kw, n.vw, WIDE, s->x + r, s->decay + r, s->y + r, s->v + l, from, to, l, block);
            else
                scaled_block(length, n.kw, n.vw, 1, s->x + r, s->decay + r, s->y + r, s->v + l, from, to, l, block);
        }
}

/* x, y and decay of the chunk, straight from the inputs; with `last` also the tokens' own products.

   Near 1 the divisor is computed as 1 minus the share forgotten, which keeps its digits there. A product of decays, all
   rounded near 1, would lose two digits over thousands of tokens that hardly forget. In the padding q is zero, so
   nothing is read from the state there. */
INLINE void gate_chunk_of(const problem *p, format n, int64_t b, int64_t h, int length, int ahead, const int64_t *token,
                          int last, forward_scratch *s)
{
    vec own[CHUNK], aug[CHUNK];
    for (int64_t i = 0; i < n.kw; i += LANES) {
        vec product = splat(1.0f), forgotten = {0}, weight = load(s->aug_weight + i);
        for (int t = 0; t < length; t++) {
            int64_t left = n.key - i;
            if (t < ahead && i == 0) { /* the next token's row is too far away for the hardware to prefetch it */
                fetch(&p->q, at_key(p, &p->q, b, token[length + t], h), n.half, n.key);
                fetch(&p->decay, at_key(p, &p->decay, b, token[length + t], h), n.half, n.key);
            }
            if (t < ahead && i + LANES >= n.kw)
                fetch(&p->v, at_value(p, &p->v, b, token[length + t], h), n.half, n.value);
            vec q = load_some(p->q.data, at_key(p, &p->q, b, token[t], h) + i, n.half, left) * p->scale, a, k;
            gate(p, load_some(p->decay.data, at_key(p, &p->decay, b, token[t], h) + i, n.half, left), &a, &k);
            product = t % STRIDE ? product * a : a;
            forgotten = t % STRIDE ? forgotten + (1.0f - forgotten) * k : k;
            vec divisor = choose(forgotten < splat(0.5f), 1.0f - forgotten, product);
            if (p->k.data)
                k = load_some(p->k.data, at_key(p, &p->k, b, token[t], h) + i, n.half, left);
            store(s->x + t * n.kw + i, q * divisor);
            store(s->y + t * n.kw + i, k * reciprocal(divisor));
            if (t % STRIDE == STRIDE - 1 || t == length - 1)
                store(s->decay + t / STRIDE * n.kw + i, divisor);
            if (last) {
                own[t] = i ? own[t] + q * k : q * k;
                aug[t] = i ? aug[t] + q * k * weight : q * k * weight;
            }
        }
    }
    for (int t = 0; t < length && last; t++) {
        s->own[t] = sum(own[t]);
        s->aug[t] = p->gated ? sum(aug[t]) / p->scale : 0.0f;
    }
}

/* Adds the tokens' own terms and self-augmentation to the sums. */
INLINE void add_own_terms(const problem *p, format n, const tensor *sums, int64_t b, int64_t h, int length, int ahead,
                          const int64_t *token, const forward_scratch *s)
{
    for (int t = 0; t < length; t++) {
        if (t < ahead && sums->data)
            fetch(sums, at_value(p, sums, b, token[length + t], h), 0, n.value);
        for (int64_t i = 0; i < n.vw; i += LANES) {
            float *at = s->packed[t] + i;
            vec v = load(s->v + t * n.vw + i), o = load(at) + s->own[t] * v;
            store(at, p->gated ? o + centred_sigmoid(s->aug[t] * v) : o);
        }
    }
}

/* SiLU(z + bias) * LayerNorm(o) of one whole head and `length` tokens, from `packed` to `out`. */
INLINE void gate_outputs(const problem *p, format n, const tensor *out, int64_t b, int64_t h, int length, int ahead,
                         const int64_t *token, const forward_scratch *s)
{
    for (int t = 0; t < length; t++) {
        const float *o = s->packed[t];
        float mean, scale;
        if (t < ahead)
            fetch(&p->z, at_token(&p->z, b, token[length + t], h), n.half, n.value);
        moments(o, 0, 0, n.value, p->eps, &mean, &scale);
        for (int64_t i = 0; i < n.vw; i += LANES) {
            int64_t left = n.value - i;
            vec z = load_some(p->z.data, at_token(&p->z, b, token[t], h) + i, n.half, left) + load(s->bias + i);
            store_some(out->data, at_token(out, b, token[t], h) + i, (load(o + i) - mean) * scale * silu(z), n.half, left);
        }
    }
}

typedef struct {
    problem p;
    tensor out; /* what the operator or the layer returns, in the dtype of the inputs */
    float *o;   /* [B, N, H, V]: sums over the orders so far, in the end the LayerNorm's input; may be NULL with one
                   order and one block of V */
    int64_t keep_o;
    float *states; /* [B, H * share, orders, K, V], padded */
} forward_call;

/* Scans `length` steps of one order, at most a chunk. `token` lists them, and after them the `ahead` steps of the next
   chunk, which are prefetched. `first`, `last`: whether this is the first, the last order that sees these tokens. */
INLINE void forward_chunk(const forward_call *f, format n, int64_t b, int64_t h, int order_index, int fresh, int length,
                          int ahead, const int64_t *token, int first, int last, forward_scratch *s)
{
    const problem *p = &f->p;
    float *state = f->states + ((b * p->heads + h) * p->orders + order_index) * n.kw * n.vw;
    tensor o = packed_values(p, f->o);
    int later = p->gated && p->share > 1, whole_vectors = n.value == n.vw;
    if (fresh)
        memset(state, 0, (size_t)(n.kw * n.vw) * 4);
    if (last && p->gated)
        load_row(s->aug_weight, p->aug_weight, h / p->share * p->key, 0, n.key, n.kw);
    gate_chunk_of(p, n, b, h, length, ahead, token, last, s);
    for (int t = 0; t < length; t++) {
        load_row(s->v + t * n.vw, p->v.data, at_value(p, &p->v, b, token[t], h), n.half, n.value, n.vw);
        float *sum = f->o ? f->o + at_value(p, &o, b, token[t], h) : NULL;
        s->packed[t] = s->sums + t * n.vw;
        s->to[t] = last || !whole_vectors ? s->packed[t] : sum;
        s->from[t] = first ? s->zeros : whole_vectors ? sum : s->packed[t];
        if (!first && !whole_vectors)
            load_row(s->packed[t], sum, 0, 0, n.value, n.vw);
    }
    scan_scaled(length, n, s, state);
    if (last)
        add_own_terms(p, n, &o, b, h, length, ahead, token, s);
    for (int t = 0; t < length && (last ? f->keep_o || later : !whole_vectors); t++)
        store_row(f->o, at_value(p, &o, b, token[t], h), s->packed[t], 0, n.value);
    if (!last || later)
        return;
    if (p->gated) {
        load_row(s->bias, p->gate_bias, h * p->value, 0, n.value, n.vw);
        gate_outputs(p, n, &f->out, b, h, length, ahead, token, s);
    } else {
        for (int t = 0; t < length; t++)
            store_row(f->out.data, at_value(p, &f->out, b, token[t], h), s->packed[t], n.half, n.value);
    }
}

/* The steps [begin, end) of one order and a group of heads. */
INLINE void forward_steps(const forward_call *f, format n, int64_t b, int64_t head, int64_t heads, int order_index,
                          int64_t begin, int64_t end, int first, int last, forward_scratch *s)
{
    const problem *p = &f->p;
    int64_t token[2 * CHUNK];
    for (int64_t at = begin; at < end; at += CHUNK) {
        int length = (int)(at + CHUNK < end ? CHUNK : end - at), ahead = (int)(at + length + CHUNK < end ? CHUNK : end - at - length);
        walk(p, (int)p->order[order_index], at, length + ahead, token);
        for (int64_t h = head; h < head + heads; h++)
            forward_chunk(f, n, b, h, order_index, at == 0, length, ahead, token, first, last, s);
    }
}

static void forward_task(const forward_call *f, int64_t b, int64_t head, int64_t heads, int order_index, int64_t begin,
                         int64_t end, int first, int last, forward_scratch *s)
{
    const problem *p = &f->p;
    if (p->key == 32 && p->value == 64 && !p->half && 64 % PADDED == 0)
        forward_steps(f, (format){32, 64, 32, 64, 0}, b, head, heads, order_index, begin, end, first, last, s);
    else
        forward_steps(f, (format){p->key, p->value, key_width(p), value_width(p), p->half}, b, head, heads, order_index,
                      begin, end, first, last, s);
}

/* The gate of a chunk of tokens and one whole head, where the scan went by blocks of V. */
static void gate_chunk(const forward_call *f, const problem *whole, int64_t b, int64_t h, int64_t begin,
                       forward_scratch *s)
{
    format n = {whole->key, whole->value, key_width(whole), value_width(whole), whole->half};
    int64_t token[CHUNK];
    tensor o = packed_values(whole, f->o);
    int length = 0;
    for (; length < CHUNK && begin + length < tokens_of(whole); length++) {
        token[length] = begin + length;
        s->packed[length] = s->sums + length * n.vw;
        load_row(s->packed[length], f->o, at_token(&o, b, token[length], h), 0, n.value, n.vw);
    }
    load_row(s->bias, whole->gate_bias, h * whole->value, 0, n.value, n.vw);
    gate_outputs(whole, n, &f->out, b, h, length, 0, token, s);
}

/* The number of heads that one task takes through the tokens together, since their rows lie side by side in memory: as
   many as leave a task for every thread and keep their states in the first-level cache. */
static int64_t heads_together(const problem *p, int orders)
{
    for (int64_t n = p->heads; n > 1; n--)
        if (p->heads % n == 0 && p->batch * (p->heads / n) * orders >= p->threads &&
            n * key_width(p) * value_width(p) * 4 <= 32768)
            return n;
    return 1;
}

int64_t metala_forward_states(const problem *p)
{
    return p->batch * p->heads * p->orders * key_width(p) * value_width(p);
}

/* 0, or 1 if there is no memory for the scratch. */
int metala_forward(const forward_call *f)
{
    const problem *p = &f->p, whole = with_whole_heads(*p);
    int64_t chunks = (tokens_of(p) + CHUNK - 1) / CHUNK;
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads) reduction(| : failed)
    {
        float *memory = floats(forward_scratch_floats(p));
        failed |= !memory;
        forward_scratch scratch = forward_layout(p, memory);
        if (memory)
            memset(memory, 0, (size_t)forward_scratch_floats(p) * 4);
        phase_orders phase = {0, 0};
        for (int first = 0; first < p->orders; first += phase.count) {
            phase = next_phase(p, first);
            int64_t together = heads_together(p, phase.count), groups = p->heads / together;
            for (int part = 0; part < phase.count; part++) {
                /* The schedule is static and part 1 swaps the two orders, so that a thread goes on with the half of the
                   tokens that is in its cache, and only the state comes from the other thread. */
#pragma omp for schedule(static)
                for (int64_t task = 0; task < p->batch * groups * phase.count; task++) {
                    int order = first + (int)(task % phase.count ^ part);
                    int64_t group = task / phase.count % groups, b = task / phase.count / groups;
                    int64_t split = split_of(p, phase, order), end = part ? tokens_of(p) : split;
                    if (memory)
                        forward_task(f, b, group * together, together, order, part ? split : 0, end, first + part == 0,
                                     first + part == p->orders - 1, &scratch);
                }
            }
        }
        if (p->gated && p->share > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < p->batch * chunks; i++)
                for (int64_t h = 0; h < whole.heads && memory; h++)
                    gate_chunk(f, &whole, i / chunks, h, i % chunks * CHUNK, &scratch);
        }
        free(memory);
    }
    return failed;
}
