/* Vectors of the widest registers the compiler was told of, and the functions of one variable the kernels need.

   Plain C with GCC's vector extension (gcc, clang): the compiler's flags make it AVX-512, AVX2 or baseline.
   Comparisons are written so that a NaN passes through. */

#ifndef METALA_SIMD_H
#define METALA_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef float vec_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t hvec_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec load(const float *p) { return *(const vec_any *)p; }
INLINE void store(float *p, vec x) { *(vec_any *)p = x; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
#if defined(__AVX512F__) /* max and min return their second operand where one is NaN */
INLINE vec at_least(vec x, float low) { return (vec)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x); }
INLINE vec at_most(vec x, float high) { return (vec)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x); }
#elif defined(__AVX2__)
INLINE vec at_least(vec x, float low) { return (vec)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x); }
INLINE vec at_most(vec x, float high) { return (vec)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x); }
#else
INLINE vec at_least(vec x, float low) { return choose(x < low, splat(low), x); }
INLINE vec at_most(vec x, float high) { return choose(x > high, splat(high), x); }
#endif
INLINE vec magnitude(vec x) { return (vec)((ivec)x & 0x7fffffff); }
INLINE vec with_sign_of(vec x, vec sign) { return (vec)((ivec)x | ((ivec)sign & (int32_t)0x80000000)); }

#if defined(__AVX512F__)
INLINE float sum(vec x) { return _mm512_reduce_add_ps((__m512)x); }
#else
INLINE float sum(vec x)
{
    float total = 0.0f;
    for (int i = 0; i < LANES; i++)
        total += x[i];
    return total;
}
#endif

/* 1 / x to 1e-7 for |x| in [2^-125, 2^125]; the division of 16 floats takes four times as long. */
#if defined(__AVX512F__)
INLINE vec reciprocal(vec x)
{
    vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
}
#else
INLINE vec reciprocal(vec x) { return 1.0f / x; }
#endif

/* bfloat16: the upper half of a float, rounded to nearest even; a NaN stays one. */
INLINE vec load_half(const uint16_t *p)
{
    return (vec)(__builtin_convertvector(*(const hvec_any *)p, uvec) << 16);
}

INLINE void store_half(uint16_t *p, vec x)
{
    uvec bits = (uvec)x;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec nan = (bits >> 16) | 0x40;
    *(hvec_any *)p = __builtin_convertvector((uvec)choose(x == x, (vec)rounded, (vec)nan), hvec);
}

INLINE float from_half(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE uint16_t to_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x)
        return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* A row of `n` values from element `at`, floats or bfloat16, to floats padded with zeros to `padded`. */
INLINE void load_row(float *to, const void *base, int64_t at, int64_t half, int64_t n, int64_t padded)
{
    int64_t i = 0;
    if (half) {
        const uint16_t *from = (const uint16_t *)base + at;
        for (; i + LANES <= n; i += LANES)
            store(to + i, load_half(from + i));
        for (; i < n; i++)
            to[i] = from_half(from[i]);
    } else {
        const float *from = (const float *)base + at;
        for (; i + LANES <= n; i += LANES)
            store(to + i, load(from + i));
        for (; i < n; i++)
            to[i] = from[i];
    }
    for (; i < padded; i++)
        to[i] = 0.0f;
}

INLINE void store_row(void *base, int64_t at, const float *from, int64_t half, int64_t n)
{
    int64_t i = 0;
    if (half) {
        uint16_t *to = (uint16_t *)base + at;
        for (; i + LANES <= n; i += LANES)
            store_half(to + i, load(from + i));
        for (; i < n; i++)
            to[i] = to_half(from[i]);
    } else {
        float *to = (float *)base + at;
        for (; i + LANES <= n; i += LANES)
            store(to + i, load(from + i));
        for (; i < n; i++)
            to[i] = from[i];
    }
}

/* One vector of a row that ends after `n` more values: the tail is zero. */
INLINE vec load_some(const void *base, int64_t at, int64_t half, int64_t n)
{
    if (n >= LANES)
        return half ? load_half((const uint16_t *)base + at) : load((const float *)base + at);
    float x[LANES];
    load_row(x, base, at, half, n, LANES);
    return load(x);
}

INLINE void store_some(void *base, int64_t at, vec x, int64_t half, int64_t n)
{
    float values[LANES];
    if (n >= LANES && half) {
        store_half((uint16_t *)base + at, x);
    } else if (n >= LANES) {
        store((float *)base + at, x);
    } else {
        store(values, x);
        store_row(base, at, values, half, n);
    }
}

/* Mean and 1 / standard deviation of the `n` values of a row from element `at`, for a LayerNorm. */
INLINE void moments(const void *base, int64_t at, int64_t half, int64_t n, float eps, float *mean, float *scale)
{
    int64_t whole = n / LANES * LANES;
    vec total = {0}, squares = {0};
    for (int64_t i = 0; i < n; i += LANES)
        total += load_some(base, at + i, half, n - i);
    float m = sum(total) / n, rest = 0.0f;
    for (int64_t i = 0; i < whole; i += LANES) {
        vec x = load_some(base, at + i, half, LANES) - m;
        squares += x * x;
    }
    for (int64_t i = whole; i < n; i++) {
        float x = (half ? from_half(((const uint16_t *)base)[at + i]) : ((const float *)base)[at + i]) - m;
        rest += x * x;
    }
    *mean = m;
    *scale = 1.0f / __builtin_sqrtf((sum(squares) + rest) / n + eps);
}

/* exp(x) = power * (1 + rest) with power = 2^n and |rest| < 0.42: exp and expm1 both come from it without loss.
   For x in [-87, 87]; rest is a polynomial in base 2, to 1e-8 of itself. */
typedef struct {
    vec power, rest;
} exp_parts;

INLINE exp_parts split_exp(vec x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    vec shifted = x * 1.44269504f + magic;
    vec f = x * 1.44269504f - (shifted - magic);
    vec tail = 1.54035122e-4f * f + 1.33907353e-3f;
    tail = tail * f + 9.61823761e-3f;
    tail = tail * f + 5.55035733e-2f;
    tail = tail * f + 0.240226492f;
    tail = tail * f + 0.693147182f;
    exp_parts parts;
    parts.rest = tail * f;
    parts.power = (vec)(((uvec)shifted << 23) + 0x3f800000);
    return parts;
}

/* exp(x) for x <= 0; below -87 it stays at 1e-38 and does not become 0. */
INLINE vec exp_negative(vec x)
{
    exp_parts e = split_exp(at_least(x, -87.0f));
    return e.power * e.rest + e.power;
}

/* log(1 + u) for u in [0, 1] as u times a polynomial: full relative precision also for tiny u (2e-7). */
INLINE vec log1p_unit(vec u)
{
    vec p = 0.00523268990f * u - 0.0295052212f;
    p = p * u + 0.0782259256f;
    p = p * u - 0.136632428f;
    p = p * u + 0.191060051f;
    p = p * u - 0.248429820f;
    p = p * u + 0.333190978f;
    p = p * u - 0.499994934f;
    p = p * u + 0.99999994f;
    return p * u;
}

INLINE vec log_sigmoid(vec x) { return at_most(x, 0.0f) - log1p_unit(exp_negative(-magnitude(x))); }

INLINE vec sigmoid(vec x)
{
    exp_parts e = split_exp(at_most(at_least(-x, -87.0f), 80.0f));
    return reciprocal(e.power * e.rest + (e.power + 1.0f));
}

INLINE vec silu(vec x) { return x * sigmoid(x); }

/* Derivative of silu at x, with s = sigmoid(x). */
INLINE vec silu_slope(vec x, vec s) { return s * (1.0f + x * (1.0f - s)); }

/* sigmoid(x) - 1/2, with full relative precision around zero. */
INLINE vec centred_sigmoid(vec x)
{
    exp_parts e = split_exp(at_least(-magnitude(x), -87.0f));
    vec expm1 = e.power * e.rest + (e.power - 1.0f);
    return with_sign_of(-0.5f * expm1 * reciprocal(expm1 + 2.0f), x);
}

#endif
