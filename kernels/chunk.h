/* Packed chunks of the backward scan: their tokens are gathered, their gates computed, and a state walks over them.

   Rows are of [K] or [V] floats, padded with zeros. */

#ifndef METALA_CHUNK_H
#define METALA_CHUNK_H

#include "scan.h"

typedef struct {
    int64_t token[CHUNK];
    int length;
    float *q, *a, *k, *x; /* [T, K]: see `gather` and `apply_gates` */
    float *v;             /* [T, V] */
} chunk;

/* Gathers the inputs as they are: `a` holds log-decays or logits, `k` is filled if it is given. The next chunk is
   `ahead` steps further, CHUNK or -CHUNK. The arithmetic comes later, in long loops of independent exponentials that
   keep the processor busy: token by token, it would wait for each exponential. */
static void gather(const problem *p, chunk *c, int64_t b, int64_t h, int order, int64_t begin, int64_t end, int ahead)
{
    int64_t kw = key_width(p), vw = value_width(p), n = tokens_of(p), half = p->half;
    c->length = (int)(end - begin);
    for (int t = 0; t < c->length; t++) {
        int64_t token = c->token[t] = token_at(p, order, begin + t);
        load_row(c->q + t * kw, p->q.data, at_key(p, &p->q, b, token, h), half, p->key, kw);
        load_row(c->a + t * kw, p->decay.data, at_key(p, &p->decay, b, token, h), half, p->key, kw);
        load_row(c->v + t * vw, p->v.data, at_value(p, &p->v, b, token, h), half, p->value, vw);
        if (p->k.data)
            load_row(c->k + t * kw, p->k.data, at_key(p, &p->k, b, token, h), half, p->key, kw);
        int64_t next = begin + t + ahead;
        if (next >= 0 && next < n) { /* the next token's row is too far away for the hardware to prefetch it */
            next = token_at(p, order, next);
            fetch(&p->q, at_key(p, &p->q, b, next, h), half, p->key);
            fetch(&p->decay, at_key(p, &p->decay, b, next, h), half, p->key);
            fetch(&p->v, at_value(p, &p->v, b, next, h), half, p->value);
        }
    }
}

/* A padding logit of zero does not give a key of zero, and the keys in the padding must be zero. */
INLINE void clear_padding(const problem *p, const chunk *c, float *k)
{
    for (int t = 0; t < c->length && p->logits && p->key < key_width(p); t++)
        memset(k + t * key_width(p) + p->key, 0, (size_t)(key_width(p) - p->key) * 4);
}

/* Fills q (query times scale), a (decay), k (key), and x = q a, by which the token reads the state before it. */
static void apply_gates(const problem *p, const chunk *c)
{
    for (int64_t i = 0; i < c->length * key_width(p); i += LANES) {
        vec q = load(c->q + i) * p->scale, a, k;
        gate(p, load(c->a + i), &a, &k);
        store(c->q + i, q);
        store(c->a + i, a);
        store(c->x + i, q * a);
        if (!p->k.data)
            store(c->k + i, k);
    }
    clear_padding(p, c, c->k);
}

/* out_t[l] += sum_r x_t[r] S[r, l], then S[r, l] = a_t S[r, l] + u_t[r] w_t[l], where a_t is a_t[l] if `decay_lanes`,
   else a_t[r]. S is [rows, lanes], both padded; the others are packed rows of the chunk, [T, rows] or [T, lanes].
   `reverse` walks from the last token. The flags are constants at every call. */
INLINE void scan_block(int length, int64_t rows, int64_t lanes, int wide, const float *x, const float *a,
                       int decay_lanes, const float *u, const float *w, float *out, float *state, int reverse)
{
    vec s[ROWS][WIDE];
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            s[r][l] = load(state + r * lanes + l * LANES);
    for (int i = 0; i < length; i++) {
        int t = reverse ? length - 1 - i : i;
        const float *xt = x + t * rows, *ut = u + t * rows, *at = a + t * (decay_lanes ? lanes : rows);
        vec o[WIDE], wt[WIDE], decay[WIDE];
        for (int l = 0; l < wide; l++) {
            o[l] = load(out + t * lanes + l * LANES);
            wt[l] = load(w + t * lanes + l * LANES);
            if (decay_lanes)
                decay[l] = load(at + l * LANES);
        }
        for (int r = 0; r < ROWS; r++)
            for (int l = 0; l < wide; l++) {
                o[l] += xt[r] * s[r][l];
                s[r][l] = (decay_lanes ? decay[l] : splat(at[r])) * s[r][l] + ut[r] * wt[l];
            }
        for (int l = 0; l < wide; l++)
            store(out + t * lanes + l * LANES, o[l]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int l = 0; l < wide; l++)
            store(state + r * lanes + l * LANES, s[r][l]);
}

INLINE void scan_state(int length, int64_t rows, int64_t lanes, const float *x, const float *a, int decay_lanes,
                       const float *u, const float *w, float *out, float *state, int reverse)
{
    for (int64_t l = 0; l < lanes; l += WIDE * LANES)
        for (int64_t r = 0; r < rows; r += ROWS) {
            const float *decay = a + (decay_lanes ? l : r);
            float *block = state + r * lanes + l;
            if (l + WIDE * LANES <= lanes)
                scan_block(length, rows, lanes, WIDE, x + r, decay, decay_lanes, u + r, w + l, out + l, block, reverse);
            else
                scan_block(length, rows, lanes, 1, x + r, decay, decay_lanes, u + r, w + l, out + l, block, reverse);
        }
}

#endif
