/* Element-wise work around the matrix products, on tokens with their channels side by side: SiLU of a depthwise 3x3
   convolution, with a LayerNorm before it or a product behind it; SwiGLU's product; the patches of an image. */

#include <stdlib.h>

#include "simd.h"

typedef struct {
    int64_t batch, rows, cols, channels, threads;
    int64_t stride;          /* from a token to the next in x, value, dx and dvalue; in the others it is C */
    int64_t first, last;     /* rows of all images that are computed; out begins with row `first`. Forward only */
    int64_t half, out_half;  /* half: those four are bfloat16; out_half: out and dout are */
    const void *x;           /* [B, rows, cols, C] */
    const void *value;       /* of the same shape, out of the dtype of x; or NULL: no factor */
    const float *weight;     /* [C, 9], taps row by row */
    void *out;               /* [last - first, cols, C] = SiLU(convolution) * value */
    const void *dout;
    void *dx, *dvalue;
    float *dweight;          /* [B, 9, C], to be summed */
    const float *norm_weight, *norm_bias; /* [C], of a LayerNorm of x that comes first, forward, no value; or NULL */
    float eps;
} conv_call;

/* The 3x3 neighbourhood of one vector of channels, sliding along a row of the grid; zero outside of the grid. */
typedef struct {
    vec x[9];
    const void *row[3]; /* of the grid, from that vector on; NULL beyond an edge */
    int64_t at, token, column, columns, n;
    int half;
} window;

INLINE void slide(window *w)
{
    for (int r = 0; r < 3; r++) {
        w->x[3 * r] = w->x[3 * r + 1];
        w->x[3 * r + 1] = w->x[3 * r + 2];
        int inside = w->row[r] && w->column + 2 < w->columns;
        w->x[3 * r + 2] = inside ? load_some(w->row[r], w->at, w->half, w->n) : (vec){0};
    }
    w->at += w->token;
    w->column++;
}

/* The window at column 0 of three rows. `token` is the distance of two tokens, `n` the channels left from `channel`. */
INLINE window window_on(const conv_call *c, const void *const *rows, int half, int64_t token, int64_t channel, int64_t n)
{
    window w = {.at = channel, .token = token, .column = -2, .columns = c->cols, .half = half, .n = n};
    for (int r = 0; r < 3; r++)
        w.row[r] = rows[r];
    slide(&w);
    slide(&w);
    return w;
}

/* The rows around `row` of one image [rows, cols, _]. */
INLINE void rows_around(const conv_call *c, const void *image, int half, int64_t token, int64_t row, const void **rows)
{
    for (int64_t r = row - 1; r <= row + 1; r++)
        *rows++ = r >= 0 && r < c->rows ? (const char *)image + (half ? 2 : 4) * r * c->cols * token : NULL;
}

INLINE vec convolve(const window *w, const vec weight[9])
{
    vec rows[3] = {{0}};
    for (int i = 0; i < 9; i++)
        rows[i / 3] += w->x[i] * weight[i];
    return rows[0] + rows[1] + rows[2];
}

/* The taps of the vector of channels at `i`, from `taps` [9, C rounded up to vectors]. */
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

/* Writes the row of the grid that begins at token `at`; `stride` is that of `rows`. `whole`: all vectors are full. Where
   `whole`, `gated` and the dtypes are constants, the compiler leaves no branch inside the row. */
INLINE void conv_row(const conv_call *c, const float *taps, const void *const *rows, int64_t stride, int64_t at,
                     int half, int out_half, int whole, int gated)
{
    for (int64_t i = 0; i < c->channels; i += LANES) {
        int64_t n = whole ? LANES : c->channels - i;
        vec weight[9];
        load_taps(c, taps, i, 0, weight);
        window w = window_on(c, rows, half, stride, i, n);
        int64_t to = (at - c->first * c->cols) * c->channels + i, from = at * c->stride + i;
        for (; w.column < c->cols; slide(&w), to += c->channels, from += c->stride) {
            vec y = silu(convolve(&w, weight));
            store_some(c->out, to, gated ? y * load_some(c->value, from, half, n) : y, out_half, n);
        }
    }
}

/* LayerNorm of the tokens of one row of the grid, [cols, C]. */
static void normalise(const conv_call *c, int64_t at, float *to)
{
    for (int64_t t = 0; t < c->cols; t++, at += c->stride, to += c->channels) {
        float mean, scale;
        moments(c->x, at, c->half, c->channels, c->eps, &mean, &scale);
        for (int64_t i = 0; i < c->channels; i += LANES) {
            int64_t n = c->channels - i;
            vec x = (load_some(c->x, at + i, c->half, n) - mean) * scale;
            x = x * load_some(c->norm_weight, i, 0, n) + load_some(c->norm_bias, i, 0, n);
            store_some(to, i, x, 0, n);
        }
    }
}

/* Rows [begin, end) out of [first, last). `ring` has room for three of them, normalised. */
static void conv_rows(const conv_call *c, const float *taps, int64_t begin, int64_t end, float *ring)
{
    int64_t width = c->cols * c->channels, stride = ring ? c->channels : c->stride, held[3] = {-1, -1, -1};
    int half = c->half && !ring, whole = c->channels % LANES == 0, gated = c->value != NULL;
    for (int64_t i = begin; i < end; i++) {
        const void *rows[3];
        int64_t row = i % c->rows, at = i * c->cols, image = (i - row) * c->cols * c->stride;
        rows_around(c, (const char *)c->x + (c->half ? 2 : 4) * image, (int)c->half, c->stride, row, rows);
        for (int64_t r = 0; r < 3 && ring; r++) {
            int64_t slot = (i + r) % 3, source = i + r - 1;
            if (!rows[r])
                continue;
            if (held[slot] != source)
                normalise(c, source * c->cols * c->stride, ring + slot * width);
            held[slot] = source;
            rows[r] = ring + slot * width;
        }
        if (!whole || (half && !c->out_half))
            conv_row(c, taps, rows, stride, at, half, (int)c->out_half, 0, gated);
        else if (half && gated)
            conv_row(c, taps, rows, stride, at, 1, 1, 1, 1);
        else if (half)
            conv_row(c, taps, rows, stride, at, 1, 1, 1, 0);
        else if (c->out_half)
            conv_row(c, taps, rows, stride, at, 0, 1, 1, 0);
        else if (gated)
            conv_row(c, taps, rows, stride, at, 0, 0, 1, 1);
        else
            conv_row(c, taps, rows, stride, at, 0, 0, 1, 0);
    }
}

/* 0, or 1 if there is no memory. */
int metala_conv(const conv_call *c)
{
    float *taps = transpose_taps(c);
    int failed = !taps;
    int64_t rows = c->last - c->first;
    /* One part for each thread, which finds the rows that it wrote before in its own cache. */
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(| : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        float *ring = NULL;
        if (c->norm_weight) {
            ring = aligned_alloc(64, (size_t)((3 * c->cols * c->channels * 4 + 63) / 64 * 64));
            failed |= !ring;
        }
        if (taps && (ring || !c->norm_weight))
            conv_rows(c, taps, c->first + rows * part / c->threads, c->first + rows * (part + 1) / c->threads, ring);
        free(ring);
    }
    free(taps);
    return failed;
}

/* One vector of channels of one image. `grad` [rows * cols, LANES] takes the gradient of the convolution's output. */
static void conv_backward(const conv_call *c, const float *taps, int64_t b, int64_t i, float *grad)
{
    int64_t tokens = c->rows * c->cols, n = c->channels - i;
    int64_t out = b * tokens * c->channels + i, at = b * tokens * c->stride + i;
    const void *image = (const char *)c->x + (c->half ? 2 : 4) * (at - i), *rows[3];
    vec weight[9], dweight[9] = {{0}};
    load_taps(c, taps, i, 0, weight);
    for (int64_t row = 0, token = 0; row < c->rows; row++) {
        rows_around(c, image, (int)c->half, c->stride, row, rows);
        for (window w = window_on(c, rows, (int)c->half, c->stride, i, n); w.column < c->cols; slide(&w), token++) {
            vec y = convolve(&w, weight), s = sigmoid(y);
            vec d = load_some(c->dout, out + token * c->channels, c->out_half, n);
            if (c->value) {
                store_some(c->dvalue, at + token * c->stride, d * y * s, c->half, n);
                d *= load_some(c->value, at + token * c->stride, c->half, n);
            }
            d *= silu_slope(y, s);
            store(grad + token * LANES, d);
            for (int tap = 0; tap < 9; tap++)
                dweight[tap] += d * w.x[tap];
        }
    }
    for (int tap = 0; tap < 9; tap++)
        store_some(c->dweight, (b * 9 + tap) * c->channels + i, dweight[tap], 0, n);
    load_taps(c, taps, i, 1, weight);
    for (int64_t row = 0, token = 0; row < c->rows; row++) {
        rows_around(c, grad, 0, LANES, row, rows);
        for (window w = window_on(c, rows, 0, LANES, 0, LANES); w.column < c->cols; slide(&w), token++)
            store_some(c->dx, at + token * c->stride, convolve(&w, weight), c->half, n);
    }
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

/* Calls the row function for every token, with constants for the dtype and `whole` if all vectors are full. */
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

typedef struct {
    int64_t batch, chans, height, width; /* of the image */
    int64_t patch_height, patch_width, threads, bytes; /* of an element */
    int64_t image, chan, line; /* strides in elements; pixels of a line side by side */
    const void *x;
    void *out; /* [B, rows, cols, chans, patch_height, patch_width], zeros beyond the image */
} patches_call;

int metala_patches(const patches_call *c)
{
    int64_t rows = (c->height + c->patch_height - 1) / c->patch_height, run = c->patch_width * c->bytes;
    int64_t cols = (c->width + c->patch_width - 1) / c->patch_width, whole = c->width / c->patch_width;
    int64_t patch = c->chans * c->patch_height * run, rest = (c->width - whole * c->patch_width) * c->bytes;
#pragma omp parallel for schedule(static) num_threads((int)c->threads)
    for (int64_t i = 0; i < c->batch * rows; i++)
        for (int64_t j = 0; j < c->chans * c->patch_height; j++) { /* a line of the image: read from end to end */
            int64_t y = i % rows * c->patch_height + j % c->patch_height, b = i / rows, chan = j / c->patch_height;
            const char *from = (const char *)c->x + c->bytes * (b * c->image + chan * c->chan + y * c->line);
            char *to = (char *)c->out + i * cols * patch + j * run;
            for (int64_t col = 0; col < cols; col++, from += run, to += patch)
                if (y >= c->height) {
                    memset(to, 0, (size_t)run);
                } else if (col == whole) {
                    memcpy(to, from, (size_t)rest);
                    memset(to + rest, 0, (size_t)(run - rest));
                } else if (run == 64) {
                    memcpy(to, from, 64); /* in one move */
                } else {
                    memcpy(to, from, (size_t)run);
                }
        }
    return 0;
}
