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

/* SiLU(z + bias) * LayerNorm(o) of one head, in place of o in `out` [T, V]; z is packed, and overwritten. */
static void gate_outputs(const problem *p, int length, float *z, const float *bias, float *out)
{
    int64_t vw = value_width(p);
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

typedef struct {
    problem p;
    tensor out; /* as the inputs in dtype: what the operator or the layer returns */
    float *o;   /* [B, N, H, V]: sums over the orders so far, in the end the LayerNorm's input; NULL if one order */
    int64_t keep_o;
    float *states; /* [B, H, orders, K, V], padded */
} forward_call;

/* One task's part of a phase. `visit` counts the orders that saw these tokens before. */
static void forward_part(const forward_call *f, int64_t b, int64_t h, int order_index, int64_t begin, int64_t end,
                         int first, int last, float *scratch)
{
    const problem *p = &f->p;
    int64_t kw = key_width(p), vw = value_width(p), n = tokens_of(p);
    float *state = f->states + ((b * p->heads + h) * p->orders + order_index) * kw * vw;
    chunk c = {.q = scratch, .a = scratch + CHUNK * kw, .k = scratch + 2 * CHUNK * kw, .x = scratch + 3 * CHUNK * kw};
    c.v = c.x + CHUNK * kw;
    float *out = c.v + CHUNK * vw, *aug_weight = out + CHUNK * vw, *bias = aug_weight + kw;
    tensor o = {f->o, n * p->heads * p->value, p->heads * p->value, p->value};
    if (p->gated) {
        load_row(aug_weight, p->aug_weight, h * p->key, 0, p->key, kw);
        load_row(bias, p->gate_bias, h * p->value, 0, p->value, vw);
    }
    if (begin == 0)
        memset(state, 0, (size_t)(kw * vw) * 4);
    for (int64_t at = begin; at < end; at += CHUNK) {
        pack(p, &c, b, h, (int)p->order[order_index], at, at + CHUNK < end ? at + CHUNK : end);
        if (first)
            memset(out, 0, (size_t)(c.length * vw) * 4);
        for (int t = 0; t < c.length && !first; t++)
            load_row(out + t * vw, f->o, at_token(&o, b, c.token[t], h), 0, p->value, vw);
        scan_rows(c.length, kw, vw, c.x, c.a, c.k, c.v, out, state, 0);
        if (last)
            add_own_terms(p, &c, aug_weight, out);
        for (int t = 0; t < c.length && (!last || f->keep_o); t++)
            store_row(f->o, at_token(&o, b, c.token[t], h), out + t * vw, 0, p->value);
        if (!last)
            continue;
        if (p->gated) { /* v has done its work: its buffer takes z */
            for (int t = 0; t < c.length; t++)
                load_row(c.v + t * vw, p->z.data, at_token(&p->z, b, c.token[t], h), p->half, p->value, vw);
            gate_outputs(p, c.length, c.v, bias, out);
        }
        for (int t = 0; t < c.length; t++)
            store_row(f->out.data, at_token(&f->out, b, c.token[t], h), out + t * vw, p->half, p->value);
    }
}

int64_t metala_forward_states(const problem *p)
{
    return p->batch * p->heads * p->orders * key_width(p) * value_width(p);
}

/* 0, or 1 if there is no memory for the scratch. */
int metala_forward(const forward_call *f)
{
    const problem *p = &f->p;
    int64_t kw = key_width(p), vw = value_width(p), n = tokens_of(p), sequences = p->batch * p->heads;
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads) reduction(| : failed)
    {
        float *scratch = floats(CHUNK * (4 * kw + 2 * vw) + kw + 2 * vw);
        failed |= !scratch;
        phase_orders phase = {0, 0};
        for (int first = 0; first < p->orders; first += phase.count) {
            phase = next_phase(p, first);
            for (int part = 0; part < phase.count; part++) {
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < sequences * phase.count; task++) {
                    int64_t sequence = task / phase.count;
                    int order = first + (int)(task % phase.count);
                    int64_t split = split_of(p, phase, order);
                    if (scratch)
                        forward_part(f, sequence / p->heads, sequence % p->heads, order, part ? split : 0,
                                     part ? n : split, first + part == 0, first + part == p->orders - 1, scratch);
                }
            }
        }
        free(scratch);
    }
    return failed;
}
