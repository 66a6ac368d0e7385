/* The scan of heads with one key and one value channel, as HGRN has them: a recurrence for every channel alone.

   The heads lie side by side, so a vector holds one state of each of its heads, and nothing is padded. A task is a block
   of heads of one image; it goes through all orders, one after the other. With f_t = 1 - a_t, in one order
     h_t = a_t h_{t-1} + k_t v_t,   o_t = scale q_t h_t,
   and in every order but the first o_t = scale q_t a_t h_{t-1}: a token's own term counts once. */

#include "scan.h"

#define STEPS 32                  /* tokens whose indices are made at a time */
#define KEPT ((int64_t)1 << 20)   /* floats for all tokens of a block, which should stay in a cache */
#define FEWEST 32                 /* heads of a block: two lines of the cache */

/* Inputs and dout have their heads side by side, `head` is 1; the outputs are [B, N, H] without gaps. */
typedef struct {
    problem p;
    tensor out; /* in the dtype of the inputs */
} channels_forward_call;

typedef struct {
    problem p;
    tensor dout;
    int64_t dout_half;
    float *dq, *ddecay, *dv, *dk; /* dk only if k is given */
} channels_backward_call;

/* What one token brings to LANES heads. */
typedef struct {
    vec q, a, f, k, v, g;
} inputs;

INLINE inputs read_inputs(const problem *p, int64_t b, int64_t token, int64_t h, int64_t left)
{
    inputs x;
    x.q = load_some(p->q.data, at_token(&p->q, b, token, h), p->half, left) * p->scale;
    x.g = load_some(p->decay.data, at_token(&p->decay, b, token, h), p->half, left);
    x.v = load_some(p->v.data, at_token(&p->v, b, token, h), p->half, left);
    gate(p, x.g, &x.a, &x.f);
    x.k = p->k.data ? load_some(p->k.data, at_token(&p->k, b, token, h), p->half, left) : x.f;
    return x;
}

/* a x. A product with a near 1 is taken from the share forgotten, whose digits 1 - a has lost: a channel that hardly
   forgets would drift by thousands of roundings that all go the same way. */
INLINE vec decayed(inputs x, vec h) { return choose(x.f < splat(0.5f), h - x.f * h, x.a * h); }

/* One order over all tokens of heads [h, h + heads). `sums` [N, heads padded] holds what earlier orders gave, unless this
   is the `first`, and takes the sum, unless it is the `last`, which writes to `out`. `state` [heads padded] is scratch. */
INLINE void forward_order(const channels_forward_call *f, int64_t b, int64_t h, int64_t heads, int order, int first,
                          int last, float *sums, float *state)
{
    const problem *p = &f->p;
    int64_t n = tokens_of(p), width = round_up(heads, LANES), token[STEPS];
    memset(state, 0, (size_t)width * 4);
    for (int64_t at = 0; at < n; at += STEPS) {
        int length = (int)(at + STEPS < n ? STEPS : n - at);
        walk(p, order, at, length, token);
        for (int t = 0; t < length; t++)
            for (int64_t i = 0; i < heads; i += LANES) {
                inputs x = read_inputs(p, b, token[t], h + i, heads - i);
                vec past = decayed(x, load(state + i)), now = past + x.k * x.v;
                store(state + i, now);
                vec o = first ? x.q * now : x.q * past + load(sums + token[t] * width + i);
                if (last)
                    store_some(f->out.data, at_token(&f->out, b, token[t], h + i), o, p->half, heads - i);
                else
                    store(sums + token[t] * width + i, o);
            }
    }
}

/* States before every step of one order [N, heads padded], and in the end one more. */
static void keep_states(const problem *p, int64_t b, int64_t h, int64_t heads, int order, float *states)
{
    int64_t n = tokens_of(p), width = round_up(heads, LANES), token[STEPS];
    memset(states, 0, (size_t)width * 4);
    for (int64_t at = 0; at < n; at += STEPS) {
        int length = (int)(at + STEPS < n ? STEPS : n - at);
        walk(p, order, at, length, token);
        for (int t = 0; t < length; t++, states += width)
            for (int64_t i = 0; i < heads; i += LANES) {
                inputs x = read_inputs(p, b, token[t], h + i, heads - i);
                store(states + width + i, decayed(x, load(states + i)) + x.k * x.v);
            }
    }
}

INLINE void add_some(float *to, int64_t at, vec x, int first, int64_t left)
{
    store_some(to, at, first ? x : x + load_some(to, at, 0, left), 0, left);
}

/* One order backwards, adding to the gradients of earlier orders. With D the gradient of the state behind a token,
     dq = scale do (a h + k v)   dk = v E   dv = k E   E = D + scale q do
     da = h (D + scale q do)     D of the token before = a (D + scale q do)
   where h is the state before the token; in later orders, without own terms, E = D and dq = scale do a h. */
static void backward_order(const channels_backward_call *f, int64_t b, int64_t h, int64_t heads, int order, int first,
                           const float *states, float *carried)
{
    const problem *p = &f->p;
    int64_t n = tokens_of(p), width = round_up(heads, LANES), token[STEPS];
    memset(carried, 0, (size_t)width * 4);
    for (int64_t end = n; end > 0; end -= STEPS) {
        int64_t begin = end > STEPS ? end - STEPS : 0;
        walk(p, order, begin, (int)(end - begin), token);
        for (int64_t step = end - 1; step >= begin; step--) {
            int64_t at = token[step - begin];
            for (int64_t i = 0; i < heads; i += LANES) {
                int64_t left = heads - i, to = (b * n + at) * p->heads + h + i;
                inputs x = read_inputs(p, b, at, h + i, left);
                vec dout = load_some(f->dout.data, at_token(&f->dout, b, at, h + i), f->dout_half, left);
                vec state = load(states + step * width + i), past = decayed(x, state);
                vec own = load(carried + i), behind = own + x.q * dout;
                if (first) {
                    own = behind;
                    past += x.k * x.v;
                }
                vec dg = x.a * (p->k.data ? behind * state : behind * state - own * x.v); /* k = 1 - a: dk = -da */
                dg = choose((x.g <= splat(GATE_FLOOR)) | (x.g >= splat(0.0f)), splat(0.0f), dg);
                add_some(f->dq, to, dout * past * p->scale, first, left);
                add_some(f->ddecay, to, dg, first, left);
                add_some(f->dv, to, x.k * own, first, left);
                if (p->k.data)
                    add_some(f->dk, to, x.v * own, first, left);
                store(carried + i, decayed(x, behind));
            }
        }
    }
}

/* How the heads are cut: one block for each thread that has no image of its own, and no more than KEPT floats each. */
typedef struct {
    int64_t heads, blocks;
} blocking;

static blocking cut_heads(const problem *p)
{
    int64_t blocks = (p->threads + p->batch - 1) / p->batch, by_memory = tokens_of(p) * p->heads / KEPT + 1;
    blocks = blocks > by_memory ? blocks : by_memory;
    int64_t heads = round_up((p->heads + blocks - 1) / blocks, FEWEST);
    return (blocking){heads, (p->heads + heads - 1) / heads};
}

INLINE int64_t heads_of(const problem *p, blocking c, int64_t h) { return p->heads - h < c.heads ? p->heads - h : c.heads; }

/* 0, or 1 if there is no memory for the scratch. */
int metala_channels_forward(const channels_forward_call *f)
{
    const problem *p = &f->p;
    if (p->batch == 0 || p->heads == 0)
        return 0;
    blocking c = cut_heads(p);
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads) reduction(| : failed)
    {
        float *state = floats(c.heads * (p->orders > 1 ? tokens_of(p) + 1 : 1));
        failed |= !state;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < p->batch * c.blocks; task++) {
            int64_t b = task / c.blocks, h = task % c.blocks * c.heads, heads = heads_of(p, c, h);
            if (state && p->orders == 1)
                forward_order(f, b, h, heads, (int)p->order[0], 1, 1, state, state);
            for (int i = 0; state && p->orders > 1 && i < p->orders; i++)
                forward_order(f, b, h, heads, (int)p->order[i], i == 0, i == p->orders - 1, state + c.heads, state);
        }
        free(state);
    }
    return failed;
}

/* 0, or 1 if there is no memory for the scratch. */
int metala_channels_backward(const channels_backward_call *f)
{
    const problem *p = &f->p;
    if (p->batch == 0 || p->heads == 0)
        return 0;
    blocking c = cut_heads(p);
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads) reduction(| : failed)
    {
        float *carried = floats(c.heads * (tokens_of(p) + 2));
        failed |= !carried;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < p->batch * c.blocks; task++) {
            int64_t b = task / c.blocks, h = task % c.blocks * c.heads, heads = heads_of(p, c, h);
            for (int i = 0; carried && i < p->orders; i++) {
                keep_states(p, b, h, heads, (int)p->order[i], carried + c.heads);
                backward_order(f, b, h, heads, (int)p->order[i], i == 0, carried + c.heads, carried);
            }
        }
        free(carried);
    }
    return failed;
}
