/* Every entry of the C kernels over odd shapes, for AddressSanitizer, UndefinedBehaviorSanitizer and valgrind.

   Each tensor is a malloc of exactly its size, so that one element too far is an error. Prints the number of calls; exits
   1 if a value was not finite, or a call failed. */

#include "scan.c"
#include "scan_backward.c"
#include "channels.c"
#include "tokens.c"

#include "sanitizer_memory.h"

enum { DERIVED, GIVEN, MIXER, MODES };

/* ---- the scan and the mixer, from problems of whole heads with the `share` that they are to be cut into */

static problem cut(problem p)
{
    p.heads *= p.share;
    p.value /= p.share;
    return p;
}

/* [B, N, H, channels] in memory, or as a view of [B, H, N, channels]. */
static tensor view(void *data, int64_t tokens, int64_t heads, int64_t channels, int swapped)
{
    if (swapped)
        return (tensor){.data = data, .batch = tokens * heads * channels, .token = channels, .head = tokens * channels};
    return (tensor){.data = data, .batch = tokens * heads * channels, .token = heads * channels, .head = channels};
}

/* Channels [at, at + H * channels) of a projection whose tokens are `width` wide. */
static tensor slice(void *data, int64_t at, int64_t tokens, int64_t width, int64_t channels, int64_t half)
{
    char *from = (char *)data + at * (half ? 2 : 4);
    return (tensor){.data = from, .batch = tokens * width, .token = width, .head = channels};
}

static void forward(const problem *p, tensor out, void *memory, float *o, int64_t keep)
{
    int64_t n = p->batch * tokens_of(p) * p->heads * p->value;
    forward_call f = {.p = cut(*p), .out = out, .o = o, .keep_o = keep};
    f.states = output(metala_forward_states(&f.p), 0);
    call("metala_forward", metala_forward(&f));
    check("out", memory, n, p->half);
    if (keep)
        check("o", o, n, 0);
}

static void backward(backward_call *f)
{
    f->states = output(metala_backward_states(&f->p), 0);
    call("metala_backward", metala_backward(f));
}

static void scan(problem p, int64_t given, int swapped, int64_t dout_half)
{
    int64_t n = tokens_of(&p), h = p.heads, k = p.key, v = p.value;
    int64_t keys = p.batch * n * h * k, values = p.batch * n * h * v;
    p.q = view(input(keys, p.half, -2, 2), n, h, k, swapped);
    p.decay = view(input(keys, p.half, -7, 1), n, h, k, swapped);
    p.v = view(input(values, p.half, -2, 2), n, h, v, swapped);
    if (given)
        p.k = view(input(keys, p.half, -2, 2), n, h, k, swapped);
    void *out = output(values, p.half);
    forward(&p, view(out, n, h, v, 0), out, p.orders * p.share > 1 ? output(values, 0) : NULL, 0);
    float *dv = output(values, 0);
    h *= p.share;
    keys *= p.share;
    float *dq = output(keys, 0), *dg = output(keys, 0), *dk = given ? output(keys, 0) : NULL;
    backward_call f = {.p = cut(p), .dout_half = dout_half};
    f.dout = view(input(values, dout_half, -2, 2), n, p.heads, v, !swapped);
    f.dq = view(dq, n, h, k, 0);
    f.ddecay = view(dg, n, h, k, 0);
    f.dv = view(dv, n, p.heads, v, 0);
    if (given)
        f.dk = view(dk, n, h, k, 0);
    backward(&f);
    check("dq", dq, keys, 0);
    check("dlog_decay", dg, keys, 0);
    check("dv", dv, values, 0);
    if (given)
        check("dk", dk, keys, 0);
}

/* Heads of one key and one value channel; `swapped`: tokens side by side in an image, and images in a token. */
static void channels(problem p, int64_t given, int swapped, int64_t dout_half)
{
    int64_t n = tokens_of(&p), h = p.heads, count = p.batch * n * h;
    tensor inside = {.batch = swapped ? h : n * h, .token = swapped ? p.batch * h : h, .head = 1}, packed = inside;
    packed.batch = n * h;
    packed.token = h;
    p.key = p.value = p.share = 1;
    p.q = p.decay = p.v = p.k = inside;
    p.q.data = input(count, p.half, -2, 2);
    p.decay.data = input(count, p.half, -7, 1);
    p.v.data = input(count, p.half, -2, 2);
    p.k.data = given ? input(count, p.half, -2, 2) : NULL;
    channels_forward_call f = {.p = p, .out = packed};
    f.out.data = output(count, p.half);
    call("metala_channels_forward", metala_channels_forward(&f));
    check("channels out", f.out.data, count, p.half);
    channels_backward_call g = {.p = p, .dout = inside, .dout_half = dout_half};
    g.dout.data = input(count, dout_half, -2, 2);
    g.dq = output(count, 0);
    g.ddecay = output(count, 0);
    g.dv = output(count, 0);
    g.dk = given ? output(count, 0) : NULL;
    call("metala_channels_backward", metala_channels_backward(&g));
    check("channels dq", g.dq, count, 0);
    check("channels dlog_decay", g.ddecay, count, 0);
    check("channels dv", g.dv, count, 0);
    if (given)
        check("channels dk", g.dk, count, 0);
}

static void mixer(problem p, int64_t dout_half)
{
    int64_t n = tokens_of(&p), h = p.heads, k = p.key, v = p.value, width = 2 * h * (k + v), half = p.half;
    int64_t values = p.batch * n * h * v;
    void *projected = input(p.batch * n * width, half, -2, 2);
    for (int64_t i = 0; i < p.batch * n; i++) /* some gates saturate */
        for (int64_t j = h * k; j < 2 * h * k; j++)
            put(projected, i * width + j, half, uniform(-1, 1) * (j % 3 ? 3.0f : 120.0f));
    p.logits = p.gated = 1;
    p.root = 1.0f / 16.0f;
    p.eps = 1e-5f;
    p.q = slice(projected, 0, n, width, k, half);
    p.decay = slice(projected, h * k, n, width, k, half);
    p.v = slice(projected, 2 * h * k, n, width, v, half);
    p.z = slice(projected, 2 * h * k + h * v, n, width, v, half);
    p.gate_bias = input(h * v, 0, -2, 2);
    p.aug_weight = input(h * k, 0, -2, 2);
    void *out = output(values, half);
    forward(&p, view(out, n, h, v, 0), out, p.orders * p.share > 1 ? output(values, 0) : NULL, 0);
    void *kept = output(values, half);
    float *o = output(values, 0);
    forward(&p, view(kept, n, h, v, 0), kept, o, 1);
    if (memcmp(out, kept, (size_t)(values * (half ? 2 : 4)))) {
        fprintf(stderr, "%s: another output where the LayerNorm's input is kept\n", label);
        failures++;
    }
    float *dprojected = output(p.batch * n * width, 0);
    int64_t blocks = p.batch * metala_backward_blocks(&p);
    backward_call f = {.p = cut(p), .dout_half = dout_half, .o = o};
    f.dout = view(input(values, dout_half, -2, 2), n, h, v, 0);
    f.dq = slice(dprojected, 0, n, width, k, 0);
    f.ddecay = slice(dprojected, h * k, n, width, k, 0);
    if (p.share > 1) {
        int64_t keys = p.batch * n * h * p.share * k;
        memset(dprojected, 0, (size_t)(p.batch * n * width) * 4);
        f.dq = view(output(keys, 0), n, h * p.share, k, 0);
        f.ddecay = view(output(keys, 0), n, h * p.share, k, 0);
    }
    f.dv = slice(dprojected, 2 * h * k, n, width, v, 0);
    f.dz = slice(dprojected, 2 * h * k + h * v, n, width, v, 0);
    f.dbias = output(blocks * h * v, 0);
    f.daug = output(p.batch * h * p.share * p.orders * k, 0);
    f.scanned = output(values, 0);
    backward(&f);
    if (p.share > 1) {
        check("dq", f.dq.data, p.batch * n * h * p.share * k, 0);
        check("ddecay", f.ddecay.data, p.batch * n * h * p.share * k, 0);
    }
    check("dprojected", dprojected, p.batch * n * width, 0);
    check("dbias", f.dbias, blocks * h * v, 0);
    check("daug", f.daug, p.batch * h * p.share * p.orders * k, 0);
}

/* ---- convolution, SwiGLU and patches */

static void convolution(int64_t batch, int64_t rows, int64_t cols, int64_t channels, int64_t half, int64_t out_half)
{
    int64_t n = batch * rows * cols * channels;
    conv_call c = {.batch = batch, .rows = rows, .cols = cols, .channels = channels, .threads = threads};
    c.stride = channels;
    c.last = batch * rows;
    c.half = half;
    c.out_half = out_half;
    c.x = input(n, half, -2, 2);
    c.weight = input(9 * channels, 0, -1, 1);
    c.out = output(n, out_half);
    call("metala_conv", metala_conv(&c));
    check("conv out", c.out, n, out_half);
    c.norm_weight = input(channels, 0, -1, 1);
    c.norm_bias = input(channels, 0, -1, 1);
    c.eps = 1e-6f;
    c.out = output(n, out_half);
    call("metala_conv with a norm", metala_conv(&c));
    check("conv out after a norm", c.out, n, out_half);
    c.norm_weight = c.norm_bias = NULL;
    c.out = NULL;
    c.dout = input(n, out_half, -2, 2);
    c.dx = output(n, half);
    c.dweight = output(batch * 9 * channels, 0);
    call("metala_conv_backward", metala_conv_backward(&c));
    check("conv dx", c.dx, n, half);
    check("conv dweight", c.dweight, batch * 9 * channels, 0);
}

/* Gate and value side by side; forward once more for all rows but the first and the last. */
static void gated_convolution(int64_t batch, int64_t rows, int64_t cols, int64_t channels, int64_t half)
{
    int64_t n = batch * rows * cols * channels, value = (half ? 2 : 4) * channels;
    conv_call c = {.batch = batch, .rows = rows, .cols = cols, .channels = channels, .threads = threads};
    c.stride = 2 * channels;
    c.last = batch * rows;
    c.half = c.out_half = half;
    c.x = input(2 * n, half, -2, 2);
    c.value = (const char *)c.x + value;
    c.weight = input(9 * channels, 0, -1, 1);
    c.out = output(n, half);
    call("metala_conv with a value", metala_conv(&c));
    check("conv out times a value", c.out, n, half);
    if (batch * rows > 2) {
        int64_t inner = n - 2 * cols * channels;
        c.first = 1;
        c.last = batch * rows - 1;
        c.out = output(inner, half);
        call("metala_conv of some rows", metala_conv(&c));
        check("conv out of some rows", c.out, inner, half);
    }
    c.out = NULL;
    c.dout = input(n, half, -2, 2);
    c.dx = output(2 * n, half);
    c.dvalue = (char *)c.dx + value;
    c.dweight = output(batch * 9 * channels, 0);
    call("metala_conv_backward with a value", metala_conv_backward(&c));
    check("conv dx and dvalue", c.dx, 2 * n, half);
    check("conv dweight of gates", c.dweight, batch * 9 * channels, 0);
}

static void swiglu(int64_t tokens, int64_t width, int64_t half)
{
    swiglu_call c = {.tokens = tokens, .width = width, .threads = threads, .half = half};
    c.x = input(2 * tokens * width, half, -200, 200);
    c.out = output(tokens * width, half);
    call("metala_swiglu", metala_swiglu(&c));
    check("swiglu out", c.out, tokens * width, half);
    c.out = NULL;
    c.dout = input(tokens * width, half, -2, 2);
    c.dx = output(2 * tokens * width, half);
    call("metala_swiglu_backward", metala_swiglu_backward(&c));
    check("swiglu dx", c.dx, 2 * tokens * width, half);
}

static void patches(int64_t height, int64_t width, int64_t patch_height, int64_t patch_width, int64_t half)
{
    patches_call c = {.batch = 2, .chans = 3, .height = height, .width = width, .threads = threads, .bytes = half ? 2 : 4};
    int64_t rows = (height + patch_height - 1) / patch_height, cols = (width + patch_width - 1) / patch_width;
    int64_t n = 2 * 3 * rows * cols * patch_height * patch_width;
    c.patch_height = patch_height;
    c.patch_width = patch_width;
    c.line = width;
    c.chan = height * width;
    c.image = 3 * height * width;
    c.x = input(2 * c.image, half, -2, 2);
    c.out = output(n, half);
    call("metala_patches", metala_patches(&c));
    check("patches", c.out, n, half);
}

/* ---- arguments: threads, every how many-th case of the scans, and "poison" */

int main(int argc, char **argv)
{
    static const int64_t grids[][2] = {{1, 1}, {1, 7}, {7, 9}, {10, 13}, {15, 17}, {130, 1}};
    static const int64_t sizes[] = {8, 5, 32, 33, 64}, widths[] = {1, 8, 20, 33, 64}, tokens[] = {1, 7, 63, 130, 255};
    if (argc < 3)
        return 2;
    threads = atoi(argv[1]);
    poison = argc > 3 && !strcmp(argv[3], "poison");
    int every = atoi(argv[2]), number = 0;
    for (int g = 0; g < LENGTH(grids); g++)
        for (int i = 0; i < LENGTH(sizes); i++)
            for (int j = 0; j < LENGTH(sizes); j++)
                for (int mode = 0; mode < MODES; mode++)
                    for (int half = 0; half < 2; half++) {
                        if (number++ % every)
                            continue;
                        int mix = number / every;
                        problem p = {.batch = 1 + mix % 2, .heads = 1 + mix / 2 % 3, .threads = threads, .half = half};
                        p.rows = grids[g][0];
                        p.cols = grids[g][1];
                        p.key = sizes[i];
                        p.value = sizes[j];
                        p.share = p.value % 2 == 0 && mix / 6 % 2 ? 2 : 1;
                        p.scale = 0.3f;
                        p.orders = 1 + (i + 2 * j + g + mode) % 4;
                        for (int64_t o = 0; o < p.orders; o++) /* each order first at some time, in both senses */
                            p.order[o] = (mix + (mix / 4 % 2 ? 4 - o : o)) % 4;
                        const char *format = "%dx%d K %d V %d share %d batch %d heads %d orders %d first %d half %d mode %d";
                        snprintf(label, sizeof label, format, (int)p.rows, (int)p.cols, (int)p.key,
                                 (int)p.value, (int)p.share, (int)p.batch, (int)p.heads, (int)p.orders, (int)p.order[0], half, mode);
                        if (mode == MIXER)
                            mixer(p, mix / 3 % 2);
                        else
                            scan(p, mode == GIVEN, mix / 5 % 2, mix / 3 % 2);
                        release();
                    }
    for (int g = 0; g < LENGTH(grids); g++)
        for (int i = 0; i < LENGTH(widths); i++)
            for (int half = 0; half < 2; half++) {
                problem p = {.batch = 1 + (g + i) % 3, .heads = widths[i], .threads = threads, .half = half, .scale = 0.3f};
                p.rows = grids[g][0];
                p.cols = grids[g][1];
                p.orders = 1 + (i + g + half) % 4;
                for (int64_t o = 0; o < p.orders; o++)
                    p.order[o] = (g + (i % 2 ? 4 - o : o)) % 4;
                snprintf(label, sizeof label, "%dx%d heads %d of one channel, orders %d first %d half %d", (int)p.rows,
                         (int)p.cols, (int)p.heads, (int)p.orders, (int)p.order[0], half);
                channels(p, (g + i) % 2, i % 2, (g + half) % 2);
                release();
            }
    for (int g = 0; g < LENGTH(grids); g++)
        for (int i = 0; i < LENGTH(widths); i++)
            for (int half = 0; half < 4; half++) {
                snprintf(label, sizeof label, "grid %dx%d channels %d half %d", (int)grids[g][0], (int)grids[g][1],
                         (int)widths[i], half);
                convolution(1 + g % 2, grids[g][0], grids[g][1], widths[i], half & 1, half >> 1);
                if (half < 2)
                    gated_convolution(1 + g % 2, grids[g][0], grids[g][1], widths[i], half);
                release();
            }
    for (int t = 0; t < LENGTH(tokens); t++)
        for (int i = 0; i < LENGTH(widths); i++)
            for (int half = 0; half < 2; half++) {
                snprintf(label, sizeof label, "tokens %d width %d half %d", (int)tokens[t], (int)widths[i], half);
                swiglu(tokens[t], widths[i], half);
                release();
            }
    for (int g = 0; g < LENGTH(grids); g++)
        for (int i = 0; i < LENGTH(sizes); i++)
            for (int half = 0; half < 2; half++) {
                snprintf(label, sizeof label, "image %dx%d half %d", (int)grids[g][0], (int)grids[g][1], half);
                patches(grids[g][0], grids[g][1], 1 + sizes[i] / 2, i % 2 ? 16 : sizes[i] / 4 + 1, half);
                release();
            }
    printf("%lld calls\n", (long long)calls);
    return failures != 0;
}
