/* What the sanitizers' driver works with: tensors of exactly their size, random inputs, and checks of what was written.

   What a kernel has to write is filled with NaN before the call where `poison` is set, or left as malloc gave it, which
   memcheck follows; all of it must be finite afterwards. */

#include "simd.h"

#include <stdio.h>
#include <stdlib.h>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

static int poison, failures;
static int64_t calls, threads;
static char label[256];

/* ---- memory: freed when a case ends */

static void *held[64];
static int holding;

static void *allocate(int64_t bytes)
{
    void *p = malloc((size_t)bytes);
    if (!p || holding == LENGTH(held))
        abort();
    return held[holding++] = p;
}

static void release(void)
{
    while (holding)
        free(held[--holding]);
}

static float uniform(float low, float high)
{
    static uint32_t bits = 2463534242u;
    bits ^= bits << 13;
    bits ^= bits >> 17;
    bits ^= bits << 5;
    return low + (high - low) * (float)(bits >> 8) / 16777216.0f;
}

static void put(void *to, int64_t i, int64_t half, float x)
{
    if (half)
        ((uint16_t *)to)[i] = to_half(x);
    else
        ((float *)to)[i] = x;
}

static void *input(int64_t n, int64_t half, float low, float high)
{
    void *x = allocate(n * (half ? 2 : 4));
    for (int64_t i = 0; i < n; i++)
        put(x, i, half, uniform(low, high));
    return x;
}

static void *output(int64_t n, int64_t half)
{
    int64_t bytes = n * (half ? 2 : 4);
    void *x = allocate(bytes);
    if (poison)
        memset(x, 0xff, (size_t)bytes); /* a NaN in both formats */
    return x;
}

static void check(const char *name, const void *x, int64_t n, int64_t half)
{
    for (int64_t i = 0; i < n; i++) {
        float value = half ? from_half(((const uint16_t *)x)[i]) : ((const float *)x)[i];
        if (!(value > -1e30f && value < 1e30f)) {
            fprintf(stderr, "%s: %s[%lld] is %g\n", label, name, (long long)i, value);
            failures++;
            return;
        }
    }
}

static void call(const char *name, int status)
{
    calls++;
    if (status) {
        fprintf(stderr, "%s: %s returned %d\n", label, name, status);
        failures++;
    }
}
