/* The forward scan, and the gated output of a MetaLA layer as its epilogue. */

#include "scan.h"

/* The tokens' own terms and self-augmentation: added to `out` [T, V]. `c->q` carries the scale. */
static void add_own_terms(const problem *p, const chunk *c, const float *aug_weight, float *out)
{
    int64_t kw = key_width(p), vw = value_width(p);
    float own[CHUNK], aug[CHUNK];
    for (int t = 0; t < c->length; t++) {
        vec own_lanes = {0}, aug_lanes = {0};
        for (int64_t i = 0; i < kw; i += LANES) {
            vec qk = load(c->q + t * kw + i) * load(c->k + t * kw + i);
            own_lanes += qk;
            if (p->gated)
                aug_lanes += qk * load(aug_weight + i);
        }
        own[t] = sum(own_lanes);
        aug[t] = p->gated ? sum(aug_lanes) / p->scale : 0.0f;
    }
    for (int t = 0; t < c->length; t++)
        for (int64_t i = t * vw; i < (t + 1) * vw; i += LANES) {
            vec v = load(c->v + i), o = load(out + i) + own[t] * v;
            store(out + i, p->gated ? o + centred_sigmoid(aug[t] * v) : o);
        }
}

/* SiLU(z + bias) * LayerNorm(o) of one whole head and `length` tokens, in place of o in `out` [T, V]. `z` [T, V] and
   `bias` are scratch. */
static void gate_outputs(const problem *p, int64_t b, int64_t h, int length, const int64_t *token, float *z, float *bias,
                         float *out)
{
    int64_t vw = value_width(p);
    for (int t = 0; t < length; t++)
        load_row(z + t * vw, p->z.data, at_token(&p->z, b, token[t], h), p->half, p->value, vw);
    load_row(bias, p->gate_bias, h * p->value, 0, p->value, vw);
    for (int64_t t = 0; t < length; t++)
        for (int64_t i = 0; i < vw; i += LANES)
            store(z + t * vw + i, silu(load(z + t * vw + i) + load(bias + i)));
    for (int64_t t = 0; t < length; t++) {
        float *o = out + t * vw, mean, scale;
        moments(p, o, &mean, &scale);
        for (int64_t i = 0; i < vw; i += LANES)
            store(o + i, (load(o + i) - mean) * scale * load(z + t * vw + i));
    }
}

/* The scan of the forward pass: within STRIDE tokens the state is kept divided by the decay since their first, which
   saves a multiplication per element. With gates above the floor the divisor stays above exp(-40), and nothing of a
   later token enters it. Of the chunk, x and a come scaled to it; y is the key over the divisor. */
#define STRIDE 8

INLINE void scaled_block(int length, int64_t rows, int64_t lanes, int wide, const float *x, const float *decay,
                         const float *y, const float *w, float *out, float *state)
{
    vec s[ROWS][WIDE];
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            s[r][l] = load(state + r * lanes + l * LANES);
    for (int begin = 0; begin < length; begin += STRIDE) {
        int end = begin + STRIDE < length ? begin + STRIDE : length;
        for (int t = begin; t < end; t++) {
            const float *xt = x + t * rows, *yt = y + t * rows;
            vec o[WIDE], wt[WIDE];
            for (int l = 0; l < wide; l++) {
                o[l] = load(out + t * lanes + l * LANES);
                wt[l] = load(w + t * lanes + l * LANES);
            }
            for (int r = 0; r < ROWS; r++)
                for (int l = 0; l < wide; l++) {
                    o[l] += xt[r] * s[r][l];
                    s[r][l] += yt[r] * wt[l];
                }
            for (int l = 0; l < wide; l++)
                store(out + t * lanes + l * LANES, o[l]);
        }
        for (int r = 0; r < ROWS; r++)
            for (int l = 0; l < wide; l++)
                s[r][l] *= decay[(end - 1) * rows + r];
    }
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            store(state + r * lanes + l * LANES, s[r][l]);
}

static void scan_scaled(int length, int64_t rows, int64_t lanes, const float *x, const float *decay, const float *y,
                             const float *w, float *out, float *state)
{
    for (int64_t l = 0; l < lanes; l += WIDE * LANES)
        for (int64_t r = 0; r < rows; r += ROWS)
            if (l + WIDE * LANES <= lanes)
                scaled_block(length, rows, lanes, WIDE, x + r, decay + r, y + r, w + l, out + l, state + r * lanes + l);
            else
                scaled_block(length, rows, lanes, 1, x + r, decay + r, y + r, w + l, out + l, state + r * lanes + l);
}

/* For scan_scaled: q becomes the query times scale, k the key, a the divisor, x the query times it, y the key over it.

   Near 1 the divisor is 1 less the share forgotten, which keeps its digits there: as a product of decays that were each
   rounded beside 1, it would lose two digits over thousands of tokens that hardly forget. */
static void apply_scaled_gates(const problem *p, const chunk *c, float *y)
{
    int64_t kw = key_width(p);
    for (int64_t i = 0; i < kw; i += LANES) {
        vec product = splat(1.0f), forgotten = {0};
        for (int64_t t = 0; t < c->length; t++) {
            int64_t at = t * kw + i;
            vec q = load(c->q + at) * p->scale, a, k;
            gate(p, load(c->a + at), &a, &k);
            product = t % STRIDE ? product * a : a;
            forgotten = t % STRIDE ? forgotten + (1.0f - forgotten) * k : k;
            vec divisor = choose(forgotten < splat(0.5f), 1.0f - forgotten, product);
            if (p->k.data)
                k = load(c->k + at);
            store(c->q + at, q);
            store(c->k + at, k);
            store(c->a + at, divisor);
            store(c->x + at, q * divisor);
            store(y + at, k * reciprocal(divisor));
        }
    }
    clear_padding(p, c, c->k);
    clear_padding(p, c, y);
}

typedef struct {
    problem p;
    tensor out; /* as the inputs in dtype: what the operator or the layer returns */
    float *o;   /* [B, N, H, V]: sums over the orders so far, in the end the LayerNorm's input; NULL if one order and one
                   block of V */
    int64_t keep_o;
    float *states; /* [B, H * share, orders, K, V], padded */
} forward_call;

/* A thread's buffers: a chunk, its outputs, and padded copies of the parameters of a head. */
typedef struct {
    chunk c;
    float *y, *out, *aug_weight, *bias;
} forward_scratch;

INLINE int64_t forward_scratch_floats(const problem *p)
{
    return CHUNK * (5 * key_width(p) + 2 * value_width(p) * p->share) + key_width(p) + value_width(p) * p->share;
}

static forward_scratch forward_layout(const problem *p, float *at)
{
    int64_t key = CHUNK * key_width(p), value = CHUNK * value_width(p) * p->share; /* whole heads: for gate_chunk */
    forward_scratch s = {.c = {.q = at, .a = at + key, .k = at + 2 * key, .x = at + 3 * key}, .y = at + 4 * key};
    s.c.v = at + 5 * key;
    s.out = s.c.v + value;
    s.aug_weight = s.out + value;
    s.bias = s.aug_weight + key_width(p);
    return s;
}

/* Steps [begin, end) of one order and head, at most a chunk; `first` and `last` of the orders that see these tokens. */
static void forward_chunk(const forward_call *f, int64_t b, int64_t h, int order_index, int64_t begin, int64_t end,
                          int first, int last, forward_scratch *s)
{
    const problem *p = &f->p;
    int64_t kw = key_width(p), vw = value_width(p);
    float *state = f->states + ((b * p->heads + h) * p->orders + order_index) * kw * vw, *out = s->out;
    chunk *c = &s->c;
    tensor o = packed_values(p, f->o);
    if (begin == 0)
        memset(state, 0, (size_t)(kw * vw) * 4);
    gather(p, c, b, h, (int)p->order[order_index], begin, end, CHUNK);
    apply_scaled_gates(p, c, s->y);
    if (first)
        memset(out, 0, (size_t)(c->length * vw) * 4);
    for (int t = 0; t < c->length && !first; t++)
        load_row(out + t * vw, f->o, at_value(p, &o, b, c->token[t], h), 0, p->value, vw);
    scan_scaled(c->length, kw, vw, c->x, c->a, s->y, c->v, out, state);
    if (last) {
        if (p->gated)
            load_row(s->aug_weight, p->aug_weight, h / p->share * p->key, 0, p->key, kw);
        add_own_terms(p, c, s->aug_weight, out);
    }
    int later = p->gated && p->share > 1;
    for (int t = 0; t < c->length && (!last || f->keep_o || later); t++)
        store_row(f->o, at_value(p, &o, b, c->token[t], h), out + t * vw, 0, p->value);
    if (!last || later)
        return;
    if (p->gated) /* v has done its work: its buffer takes z */
        gate_outputs(p, b, h, c->length, c->token, c->v, s->bias, out);
    for (int t = 0; t < c->length; t++)
        store_row(f->out.data, at_value(p, &f->out, b, c->token[t], h), out + t * vw, p->half, p->value);
}

/* The gate of a chunk of tokens and one whole head, where the scan went by blocks of V. */
static void gate_chunk(const forward_call *f, const problem *whole, int64_t b, int64_t h, int64_t begin,
                       forward_scratch *s)
{
    int64_t vw = value_width(whole), token[CHUNK];
    tensor o = packed_values(whole, f->o);
    int length = 0;
    for (; length < CHUNK && begin + length < tokens_of(whole); length++) {
        token[length] = begin + length;
        load_row(s->out + length * vw, f->o, at_token(&o, b, token[length], h), 0, whole->value, vw);
    }
    gate_outputs(whole, b, h, length, token, s->c.v, s->bias, s->out);
    for (int t = 0; t < length; t++)
        store_row(f->out.data, at_token(&f->out, b, token[t], h), s->out + t * vw, whole->half, whole->value);
}

/* Heads that one task takes through the tokens together: their rows lie side by side in memory. As many as leave a task
   for every thread and let their states stay in the first cache. */
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
        phase_orders phase = {0, 0};
        for (int first = 0; first < p->orders; first += phase.count) {
            phase = next_phase(p, first);
            int64_t together = heads_together(p, phase.count), groups = p->heads / together;
            for (int part = 0; part < phase.count; part++) {
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < p->batch * groups * phase.count; task++) {
                    int order = first + (int)(task % phase.count);
                    int64_t group = task / phase.count % groups, b = task / phase.count / groups;
                    int64_t split = split_of(p, phase, order), end = part ? tokens_of(p) : split;
                    for (int64_t at = part ? split : 0; at < end && memory; at += CHUNK)
                        for (int64_t h = group * together; h < (group + 1) * together; h++)
                            forward_chunk(f, b, h, order, at, at + CHUNK < end ? at + CHUNK : end, first + part == 0,
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
