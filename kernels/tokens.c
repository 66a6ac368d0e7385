/* Element-wise work around the matrix products, on tokens with their channels side by side:
   SiLU of a depthwise 3x3 convolution, and SwiGLU's product. */

#include <stdlib.h>

#include "simd.h"

typedef struct {
    int64_t batch, rows, cols, channels, threads;
    int64_t half, out_half;  /* x and dx, out and dout are bfloat16 */
    const void *x;           /* [B, rows, cols, C] */
    const float *weight;     /* [C, 9], taps row by row */
    void *out;               /* [B, rows, cols, C] = SiLU(convolution) */
    const void *dout;
    void *dx;
    float *dweight;          /* [B, 9, C], to be summed */
} conv_call;

/* The 3x3 neighbourhood of one vector of channels, sliding along a row of the grid; zero outside of the grid. */
typedef struct {
    vec x[9];
    const void *base;
    int64_t at[3], token, column, columns, n;
    int inside[3], half;
} window;

INLINE void slide(window *w)
{
    for (int r = 0; r < 3; r++) {
        w->x[3 * r] = w->x[3 * r + 1];
        w->x[3 * r + 1] = w->x[3 * r + 2];
        int inside = w->inside[r] && w->column + 2 < w->columns;
        w->x[3 * r + 2] = inside ? load_some(w->base, w->at[r], w->half, w->n) : (vec){0};
        w->at[r] += w->token;
    }
    w->column++;
}

/* At column 0 of `row`. `token` is the distance of two tokens, `n` how many channels are left. */
INLINE window window_at(const conv_call *c, const void *base, int half, int64_t token, int64_t n, int64_t row)
{
    window w = {.base = base, .token = token, .column = -2, .columns = c->cols, .half = half, .n = n};
    for (int r = 0; r < 3; r++) {
        w.inside[r] = row + r >= 1 && row + r <= c->rows;
        w.at[r] = (row + r - 1) * c->cols * token;
    }
    slide(&w);
    slide(&w);
    return w;
}

INLINE vec convolve(const window *w, const vec weight[9])
{
    vec rows[3] = {{0}};
    for (int i = 0; i < 9; i++)
        rows[i / 3] += w->x[i] * weight[i];
    return rows[0] + rows[1] + rows[2];
}

/* Taps of the vector of channels at `i`, of `taps` [9, C rounded up to vectors]. */
INLINE void load_taps(const conv_call *c, const float *taps, int64_t i, int flipped, vec weight[9])
{
    int64_t width = (c->channels + LANES - 1) / LANES * LANES;
    for (int tap = 0; tap < 9; tap++)
        weight[tap] = load(taps + (flipped ? 8 - tap : tap) * width + i);
}

/* The weights of all channels, transposed for `load_taps`, with zeros in the padding; NULL if there is no memory. */
static float *transpose_taps(const conv_call *c)
{
    int64_t width = (c->channels + LANES - 1) / LANES * LANES;
    float *taps = aligned_alloc(64, (size_t)((9 * width * 4 + 63) / 64 * 64));
    for (int64_t tap = 0; taps && tap < 9; tap++)
        for (int64_t i = 0; i < width; i++)
            taps[tap * width + i] = i < c->channels ? c->weight[i * 9 + tap] : 0.0f;
    return taps;
}

/* `whole`: all vectors are full. With constants for it and the dtypes the compiler leaves no branch inside the row. */
INLINE void conv_row(const conv_call *c, const float *taps, int64_t b, int64_t row, int half, int out_half, int whole)
{
    int64_t plane = c->rows * c->cols * c->channels;
    for (int64_t i = 0; i < c->channels; i += LANES) {
        const char *x = (const char *)c->x + (half ? 2 : 4) * (b * plane + i);
        int64_t n = whole ? LANES : c->channels - i, at = b * plane + row * c->cols * c->channels + i;
        vec weight[9];
        load_taps(c, taps, i, 0, weight);
        for (window w = window_at(c, x, half, c->channels, n, row); w.column < c->cols; slide(&w)) {
            store_some(c->out, at, silu(convolve(&w, weight)), out_half, n);
            at += c->channels;
        }
    }
}

/* 0, or 1 if there is no memory. */
int metala_conv(const conv_call *c)
{
    float *taps = transpose_taps(c);
    if (!taps)
        return 1;
    /* Static: a thread finds the rows that it wrote itself, in the norm before, in its own cache. */
#pragma omp parallel for schedule(static) num_threads((int)c->threads)
    for (int64_t i = 0; i < c->batch * c->rows; i++) {
        int64_t b = i / c->rows, row = i % c->rows;
        if (c->channels % LANES || (c->half && !c->out_half))
            conv_row(c, taps, b, row, (int)c->half, (int)c->out_half, 0);
        else if (c->half)
            conv_row(c, taps, b, row, 1, 1, 1);
        else if (c->out_half)
            conv_row(c, taps, b, row, 0, 1, 1);
        else
            conv_row(c, taps, b, row, 0, 0, 1);
    }
    free(taps);
    return 0;
}

/* One vector of channels of one image. `grad` [rows * cols, LANES] takes the gradient of the convolution's output. */
static void conv_backward(const conv_call *c, const float *taps, int64_t b, int64_t i, float *grad)
{
    int64_t plane = c->rows * c->cols * c->channels, n = c->channels - i;
    const char *x = (const char *)c->x + (c->half ? 2 : 4) * (b * plane + i);
    vec weight[9], dweight[9] = {{0}};
    load_taps(c, taps, i, 0, weight);
    for (int64_t row = 0, token = 0; row < c->rows; row++)
        for (window w = window_at(c, x, (int)c->half, c->channels, n, row); w.column < c->cols; slide(&w), token++) {
            vec y = convolve(&w, weight), s = sigmoid(y);
            vec d = load_some(c->dout, b * plane + token * c->channels + i, c->out_half, n) * silu_slope(y, s);
            store(grad + token * LANES, d);
            for (int tap = 0; tap < 9; tap++)
                dweight[tap] += d * w.x[tap];
        }
    for (int tap = 0; tap < 9; tap++)
        store_some(c->dweight, (b * 9 + tap) * c->channels + i, dweight[tap], 0, n);
    load_taps(c, taps, i, 1, weight);
    for (int64_t row = 0, token = 0; row < c->rows; row++)
        for (window w = window_at(c, grad, 0, LANES, LANES, row); w.column < c->cols; slide(&w), token++)
            store_some(c->dx, b * plane + token * c->channels + i, convolve(&w, weight), c->half, n);
}

/* 0, or 1 if there is no memory. */
int metala_conv_backward(const conv_call *c)
{
    int64_t vectors = (c->channels + LANES - 1) / LANES;
    float *taps = transpose_taps(c);
    int failed = !taps;
#pragma omp parallel num_threads((int)c->threads) reduction(| : failed)
    {
        float *grad = aligned_alloc(64, (size_t)((c->rows * c->cols * LANES * 4 + 63) / 64 * 64));
        failed |= !grad;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < c->batch * vectors; task++)
            if (grad && taps)
                conv_backward(c, taps, task / vectors, task % vectors * LANES, grad);
        free(grad);
    }
    free(taps);
    return failed;
}

typedef struct {
    int64_t tokens, width, threads, half;
    const void *x; /* [tokens, 2 * width]: gate, value */
    void *out;     /* [tokens, width] = SiLU(gate) * value */
    const void *dout;
    void *dx;
} swiglu_call;

INLINE void swiglu_row(const swiglu_call *c, int64_t t, int half, int whole)
{
    for (int64_t i = 0; i < c->width; i += LANES) {
        int64_t at = t * 2 * c->width + i, n = whole ? LANES : c->width - i;
        vec gate = load_some(c->x, at, half, n), value = load_some(c->x, at + c->width, half, n);
        store_some(c->out, t * c->width + i, silu(gate) * value, half, n);
    }
}

INLINE void swiglu_row_backward(const swiglu_call *c, int64_t t, int half, int whole)
{
    for (int64_t i = 0; i < c->width; i += LANES) {
        int64_t at = t * 2 * c->width + i, n = whole ? LANES : c->width - i;
        vec gate = load_some(c->x, at, half, n), value = load_some(c->x, at + c->width, half, n);
        vec d = load_some(c->dout, t * c->width + i, half, n), s = sigmoid(gate);
        store_some(c->dx, at, d * value * silu_slope(gate, s), half, n);
        store_some(c->dx, at + c->width, d * gate * s, half, n);
    }
}

/* The row function with constant dtype and whole vectors, where they hold. */
#define FOR_TOKENS(ROW_FUNCTION)                                                                                       \
    _Pragma("omp parallel for schedule(static) num_threads((int)c->threads)") for (int64_t t = 0; t < c->tokens; t++)  \
    {                                                                                                                  \
        if (c->width % LANES)                                                                                          \
            ROW_FUNCTION(c, t, (int)c->half, 0);                                                                       \
        else if (c->half)                                                                                              \
            ROW_FUNCTION(c, t, 1, 1);                                                                                  \
        else                                                                                                           \
            ROW_FUNCTION(c, t, 0, 1);                                                                                  \
    }

int metala_swiglu(const swiglu_call *c)
{
    FOR_TOKENS(swiglu_row)
    return 0;
}

int metala_swiglu_backward(const swiglu_call *c)
{
    FOR_TOKENS(swiglu_row_backward)
    return 0;
}
