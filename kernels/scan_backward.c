/* The backward scan, and the gradient of a MetaLA layer's gated output as its prologue.

   With R_t = diag(a_t) S_{t-1}, o_t = q_t R_t (the token's own term apart) and D_t the gradient of S_t:
     dq_t = R_t do_t     dk_t = D_t v_t     dv_t = k_t D_t     D_{t-1} = diag(a_t) (D_t + q_t^T do_t)
     dg_t = rowsum(D_{t-1} S_{t-1}) = rowsum(D_t S_t) + q_t dq_t - k_t dk_t
   The last line is summed backwards within a segment, from the exact rowsum(D S) at its end: the differences would lose
   digits over a long sequence. dq and dk are sums over V: for them the state is stored with K along the vectors. */

#include "chunk.h"

typedef struct {
    problem p;
    tensor dout; /* gradient of the operator's or the layer's output */
    int64_t dout_half;
    const float *o;           /* gated: the LayerNorm's input [B, N, H, V] that the forward pass kept */
    tensor dq, ddecay, dv, dk, dz; /* float; dk only if k is given, dz only if gated; dq, ddecay and dk have a head for
                                      every block of V, to be summed */
    float *dbias;             /* gated: [B * blocks, H * V], one row for BLOCK tokens, to be summed */
    float *daug;              /* gated: [B, H * share, orders, K], to be summed */
    float *scanned;           /* gated: [B, N, H, V], gradient of o */
    float *states;            /* [B, H, orders]: checkpoints [segments, V, K], two states of D, dq [N, K]; all padded */
} backward_call;

#define BLOCK 128

INLINE int64_t segments_of(const problem *p) { return tokens_of(p) / SEGMENT + 2; }

INLINE int64_t task_floats(const problem *p)
{
    return (segments_of(p) + 2) * key_width(p) * value_width(p) + tokens_of(p) * key_width(p);
}

int64_t metala_backward_states(const problem *p) { return p->batch * p->heads * p->orders * task_floats(p); }
int64_t metala_backward_blocks(const problem *p) { return (tokens_of(p) + BLOCK - 1) / BLOCK; }

/* The first step of segment `i` of an order; the segments of part 0 come first. */
INLINE int64_t segment_begin(int64_t split, int64_t i)
{
    int64_t of_split = (split + SEGMENT - 1) / SEGMENT;
    return i < of_split ? i * SEGMENT : split + (i - of_split) * SEGMENT;
}

/* y = SiLU(z + bias) * LayerNorm(o): gradients of z, bias and o for one block of tokens of one image. */
static void gate_backward(const backward_call *f, int64_t b, int64_t block, float *scratch)
{
    const problem whole = with_whole_heads(f->p), *p = &whole;
    int64_t n = p->value, vw = value_width(p), channels = p->heads * n, tokens = tokens_of(p);
    float *o = scratch, *z = o + vw, *dy = z + vw, *bias = dy + vw, *dbias = bias + vw;
    int64_t begin = block * BLOCK, end = begin + BLOCK < tokens ? begin + BLOCK : tokens;
    for (int64_t h = 0; h < p->heads; h++) {
        load_row(bias, p->gate_bias, h * n, 0, n, vw);
        memset(dbias, 0, (size_t)vw * 4);
        for (int64_t t = begin; t < end; t++) {
            int64_t at = ((b * tokens + t) * p->heads + h) * n;
            load_row(o, f->o, at, 0, n, vw);
            load_row(z, p->z.data, at_token(&p->z, b, t, h), p->half, n, vw);
            load_row(dy, f->dout.data, at_token(&f->dout, b, t, h), f->dout_half, n, vw);
            float mean, scale;
            moments(o, 0, 0, n, p->eps, &mean, &scale);
            vec mean_dn = {0}, mean_ndn = {0};
            for (int64_t i = 0; i < vw; i += LANES) { /* dy is zero in the padding, and so is all that is summed */
                vec normed = (load(o + i) - mean) * scale, zi = load(z + i) + load(bias + i), s = sigmoid(zi);
                vec dn = load(dy + i) * zi * s, dz = load(dy + i) * normed * silu_slope(zi, s);
                store(dbias + i, load(dbias + i) + dz);
                store(z + i, dz);
                store(o + i, normed);
                store(dy + i, dn);
                mean_dn += dn;
                mean_ndn += dn * normed;
            }
            float m1 = sum(mean_dn) / n, m2 = sum(mean_ndn) / n;
            for (int64_t i = 0; i < vw; i += LANES)
                store(o + i, scale * (load(dy + i) - m1 - load(o + i) * m2));
            store_row(f->dz.data, at_token(&f->dz, b, t, h), z, 0, n);
            store_row(f->scanned, at, o, 0, n);
        }
        store_row(f->dbias, (b * metala_backward_blocks(p) + block) * channels + h * n, dbias, 0, n);
    }
}

typedef struct {
    chunk c;
    float *dout, *dq, *dk, *dv, *acc_q, *acc_g, *acc_k, *aug_weight, *daug, *sum_k;
} backward_scratch;

static backward_scratch layout(const problem *p, float *at)
{
    int64_t kw = key_width(p), vw = value_width(p);
    backward_scratch s;
    float **keys[] = {&s.c.q, &s.c.a, &s.c.k, &s.c.x, &s.dq, &s.dk, &s.acc_q, &s.acc_g, &s.acc_k};
    float **values[] = {&s.c.v, &s.dout, &s.dv}, **rows[] = {&s.aug_weight, &s.daug, &s.sum_k};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++, at += CHUNK * kw)
        *keys[i] = at;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++, at += CHUNK * vw)
        *values[i] = at;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++, at += kw)
        *rows[i] = at;
    return s;
}

INLINE int64_t scratch_floats(const problem *p)
{
    int64_t chunks = CHUNK * (9 * key_width(p) + 3 * value_width(p)) + 3 * key_width(p), gating = 5 * value_width(p) * p->share;
    return chunks > gating ? chunks : gating;
}

static void gather_with_gradient(const backward_call *f, backward_scratch *s, int64_t b, int64_t h, int order,
                               int64_t begin, int64_t end, int ahead)
{
    const problem *p = &f->p;
    gather(p, &s->c, b, h, (int)p->order[order], begin, end, ahead);
    apply_gates(p, &s->c);
    for (int t = 0; t < s->c.length; t++) {
        if (begin + t + ahead >= 0 && begin + t + ahead < tokens_of(p)) {
            int64_t next = token_at(p, (int)p->order[order], begin + t + ahead);
            fetch(&f->dout, at_value(p, &f->dout, b, next, h), f->dout_half, p->value);
        }
        load_row(s->dout + t * value_width(p), f->dout.data, at_value(p, &f->dout, b, s->c.token[t], h), f->dout_half,
                 p->value, value_width(p));
    }
}

/* First sweep, in scan order: keeps the state at the start of each segment, and a_t (S_{t-1} do_t) of each token. */
static void sweep_forwards(const backward_call *f, int64_t b, int64_t h, int order, int64_t split, float *task,
                           backward_scratch *s)
{
    const problem *p = &f->p;
    int64_t kw = key_width(p), vw = value_width(p), n = tokens_of(p), area = kw * vw;
    float *state = task + segments_of(p) * area, *dq = state + 2 * area;
    memset(state, 0, (size_t)area * 4);
    for (int64_t i = 0; segment_begin(split, i) < n; i++) {
        int64_t begin = segment_begin(split, i), end = segment_begin(split, i + 1);
        end = end < n ? end : n;
        memcpy(task + i * area, state, (size_t)area * 4);
        for (int64_t at = begin; at < end; at += CHUNK) {
            gather_with_gradient(f, s, b, h, order, at, at + CHUNK < end ? at + CHUNK : end, CHUNK);
            int64_t length = s->c.length;
            memset(dq + at * kw, 0, (size_t)(length * kw) * 4);
            scan_state((int)length, vw, kw, s->dout, s->c.a, 1, s->c.v, s->c.k, dq + at * kw, state, 0);
            for (int64_t j = 0; j < length * kw; j += LANES)
                store(dq + at * kw + j, load(dq + at * kw + j) * load(s->c.a + j));
        }
    }
}

/* The token's own term and its self-augmentation: adds to dq, dk and dv of the chunk, and to daug. */
static void own_terms_backward(const problem *p, const backward_scratch *s, float *dq, float *dk, float *dv)
{
    int64_t kw = key_width(p), vw = value_width(p);
    for (int t = 0; t < s->c.length; t++) {
        const float *q = s->c.q + t * kw, *k = s->c.k + t * kw, *v = s->c.v + t * vw, *dout = s->dout + t * vw;
        vec own = {0}, aug = {0}, down = {0}, daug = {0};
        for (int64_t i = 0; i < kw; i += LANES) {
            own += load(q + i) * load(k + i);
            if (p->gated)
                aug += load(q + i) * load(k + i) * load(s->aug_weight + i);
        }
        float own_sum = sum(own), aug_sum = p->gated ? sum(aug) / p->scale : 0.0f;
        for (int64_t i = 0; i < vw; i += LANES) {
            vec vi = load(v + i), d = load(dout + i), dv_own = own_sum * d;
            down += d * vi;
            if (p->gated) {
                vec c = centred_sigmoid(aug_sum * vi), dy = d * (0.25f - c * c);
                daug += dy * vi;
                dv_own += aug_sum * dy;
            }
            store(dv + t * vw + i, load(dv + t * vw + i) + dv_own);
        }
        float down_sum = sum(down), daug_sum = p->gated ? sum(daug) / p->scale : 0.0f;
        for (int64_t i = 0; i < kw; i += LANES) {
            vec weight = splat(down_sum);
            if (p->gated) {
                weight += daug_sum * load(s->aug_weight + i);
                store(s->daug + i, load(s->daug + i) + daug_sum * load(q + i) * load(k + i));
            }
            store(dq + t * kw + i, load(dq + t * kw + i) + weight * load(k + i));
            store(dk + t * kw + i, load(dk + t * kw + i) + weight * load(q + i));
        }
    }
}

/* Second sweep, against scan order, over the steps [low, high) of that order. */
static void sweep_backwards(const backward_call *f, int64_t b, int64_t h, int order, int64_t split, int64_t low,
                            int64_t high, int first, int last, float *task, backward_scratch *s)
{
    const problem *p = &f->p;
    int64_t kw = key_width(p), vw = value_width(p), n = tokens_of(p), area = kw * vw;
    float *by_key = task + segments_of(p) * area, *by_value = by_key + area, *dq = by_value + area;
    if (high == n)
        memset(by_key, 0, (size_t)(2 * area) * 4);
    if (p->gated) {
        load_row(s->aug_weight, p->aug_weight, h / p->share * p->key, 0, p->key, kw);
        memset(s->daug, 0, (size_t)kw * 4);
    }
    int64_t i = 0;
    while (segment_begin(split, i) < high)
        i++;
    for (i--; i >= 0 && segment_begin(split, i) >= low; i--) {
        int64_t begin = segment_begin(split, i), end = segment_begin(split, i + 1);
        end = end < n ? end : n;
        memset(s->sum_k, 0, (size_t)kw * 4); /* rowsum(D S) at the end of the segment; D is zero at the end of all */
        const float *state = task + (i + 1) * area;
        for (int64_t j = 0; j < area && end < n; j += kw)
            for (int64_t l = 0; l < kw; l += LANES)
                store(s->sum_k + l, load(s->sum_k + l) + load(state + j + l) * load(by_key + j + l));
        for (int64_t at = begin + (end - begin - 1) / CHUNK * CHUNK; at >= begin; at -= CHUNK) {
            gather_with_gradient(f, s, b, h, order, at, at + CHUNK < end ? at + CHUNK : end, -CHUNK);
            const chunk *c = &s->c;
            int length = c->length;
            memset(s->dk, 0, (size_t)(length * kw) * 4);
            scan_state(length, vw, kw, c->v, c->a, 1, s->dout, c->x, s->dk, by_key, 1);
            for (int t = 0; t < length; t++) /* what earlier visits summed */
                if (first) {
                    memset(s->dv + t * vw, 0, (size_t)vw * 4);
                    memset(s->acc_q + t * kw, 0, (size_t)kw * 4);
                    memset(s->acc_g + t * kw, 0, (size_t)kw * 4);
                    memset(s->acc_k + t * kw, 0, (size_t)kw * 4);
                } else {
                    int64_t token = c->token[t];
                    load_row(s->dv + t * vw, f->dv.data, at_value(p, &f->dv, b, token, h), 0, p->value, vw);
                    load_row(s->acc_q + t * kw, f->dq.data, at_token(&f->dq, b, token, h), 0, p->key, kw);
                    load_row(s->acc_g + t * kw, f->ddecay.data, at_token(&f->ddecay, b, token, h), 0, p->key, kw);
                    if (p->k.data)
                        load_row(s->acc_k + t * kw, f->dk.data, at_token(&f->dk, b, token, h), 0, p->key, kw);
                }
            scan_state(length, kw, vw, c->k, c->a, 0, c->x, s->dout, s->dv, by_value, 1);
            for (int t = length - 1; t >= 0; t--)
                for (int64_t l = 0; l < kw; l += LANES) {
                    vec dqi = load(dq + (at + t) * kw + l), dki = load(s->dk + t * kw + l);
                    vec dg = load(s->sum_k + l) + load(c->q + t * kw + l) * dqi - load(c->k + t * kw + l) * dki;
                    store(s->sum_k + l, dg);
                    store(s->acc_q + t * kw + l, load(s->acc_q + t * kw + l) + dqi);
                    store(s->acc_g + t * kw + l, load(s->acc_g + t * kw + l) + dg);
                }
            if (last)
                own_terms_backward(p, s, s->acc_q, s->dk, s->dv);
            for (int64_t j = 0; j < length * kw; j += LANES)
                if (p->k.data)
                    store(s->acc_k + j, load(s->acc_k + j) + load(s->dk + j));
                else /* k = 1 - a */
                    store(s->acc_g + j, load(s->acc_g + j) - load(c->a + j) * load(s->dk + j));
            for (int t = 0; t < length; t++) {
                int64_t token = c->token[t];
                float *dg = s->acc_g + t * kw, *dqt = s->acc_q + t * kw;
                if (last) {
                    load_row(s->dk, p->decay.data, at_key(p, &p->decay, b, token, h), p->half, p->key, kw);
                    for (int64_t l = 0; l < kw; l += LANES) {
                        vec x = load(s->dk + l), g = p->logits ? log_sigmoid(x) * p->root : x, d = load(dg + l);
                        if (p->logits)
                            d *= p->root * sigmoid(-x);
                        store(dg + l, choose((g <= splat(GATE_FLOOR)) | (g >= splat(0.0f)), splat(0.0f), d));
                        store(dqt + l, load(dqt + l) * p->scale);
                    }
                }
                store_row(f->dv.data, at_value(p, &f->dv, b, token, h), s->dv + t * vw, 0, p->value);
                store_row(f->dq.data, at_token(&f->dq, b, token, h), dqt, 0, p->key);
                store_row(f->ddecay.data, at_token(&f->ddecay, b, token, h), dg, 0, p->key);
                if (p->k.data)
                    store_row(f->dk.data, at_token(&f->dk, b, token, h), s->acc_k + t * kw, 0, p->key);
            }
        }
    }
    if (p->gated) {
        if (last || high == n) /* zeros until the last visit */
            store_row(f->daug, ((b * p->heads + h) * p->orders + order) * p->key, s->daug, 0, p->key);
    }
}

/* 0, or 1 if there is no memory for the scratch. */
int metala_backward(const backward_call *call)
{
    backward_call scanned = *call;
    const problem *p = &call->p;
    int64_t n = tokens_of(p), sequences = p->batch * p->heads, blocks = metala_backward_blocks(p);
    if (p->gated) {
        scanned.dout = packed_values(p, call->scanned);
        scanned.dout_half = 0;
    }
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads) reduction(| : failed)
    {
        float *memory = floats(scratch_floats(p));
        failed |= !memory;
        backward_scratch scratch = layout(p, memory);
        if (p->gated) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < p->batch * blocks; i++)
                if (memory)
                    gate_backward(call, i / blocks, i % blocks, memory);
        }
        phase_orders phase = {0, 0};
        for (int first = 0; first < p->orders; first += phase.count) {
            phase = next_phase(p, first);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < sequences * phase.count; i++) {
                int order = first + (int)(i % phase.count);
                int64_t sequence = i / phase.count;
                if (memory)
                    sweep_forwards(&scanned, sequence / p->heads, sequence % p->heads, order, split_of(p, phase, order),
                                   call->states + (sequence * p->orders + order) * task_floats(p), &scratch);
            }
            for (int part = 0; part < phase.count; part++) {
#pragma omp for schedule(dynamic, 1)
                for (int64_t i = 0; i < sequences * phase.count; i++) {
                    int order = first + (int)(i % phase.count);
                    int64_t sequence = i / phase.count, split = split_of(p, phase, order);
                    int64_t low = phase.count == 2 && part == 0 ? split : 0, high = part ? split : n;
                    if (memory)
                        sweep_backwards(&scanned, sequence / p->heads, sequence % p->heads, order, split, low, high,
                                        first + part == 0, first + part == p->orders - 1,
                                        call->states + (sequence * p->orders + order) * task_floats(p), &scratch);
                }
            }
        }
        free(memory);
    }
    return failed;
}
