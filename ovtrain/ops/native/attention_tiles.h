// Products of bfloat16 matrices and what else attention.cpp is made of. Included by it alone, which
// is the only file compiled for AVX-512: nothing here may be shared with others.
//
// A product takes its left side as rows of bfloat16 pairs and its right side packed: 32-bit words,
// each a column's entries of two consecutive rows, which is what VDPBF16PS multiplies.
#pragma once

#include "attention.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t PANEL = 64;    // columns of a packed panel
constexpr int64_t ROWS = 48;     // left rows of a block
constexpr int64_t COLUMNS = 256;  // right columns of a block
constexpr float LOG2E = 1.44269504f;

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

INLINE float number(uint16_t x) {
    const uint32_t wide = uint32_t(x) << 16;
    float f;
    memcpy(&f, &wide, 4);
    return f;
}

INLINE __m512i pairs_of(const uint16_t* row) {
    int32_t both;
    memcpy(&both, row, 4);
    return _mm512_set1_epi32(both);
}

// C (M, 16 V) <- or += A (M, 2 pairs) B (2 pairs, 16 V).
template <int M, int V>
INLINE void tile(const uint16_t* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c,
                 int64_t ldc, int64_t pairs, bool add) {
    __m512 sum[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v)
            sum[m][v] = add ? _mm512_loadu_ps(c + m * ldc + 16 * v) : _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; ++k) {
        __m512bh right[V];
        for (int v = 0; v < V; ++v)
            right[v] = (__m512bh)_mm512_loadu_si512(b + k * ldb + 16 * v);
        for (int m = 0; m < M; ++m) {
            const __m512bh left = (__m512bh)pairs_of(a + m * lda + 2 * k);
            for (int v = 0; v < V; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], left, right[v]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + m * ldc + 16 * v, sum[m][v]);
}

template <int V>
void strip(int64_t rows, const uint16_t* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c,
           int64_t ldc, int64_t pairs, bool add) {
    for (; rows >= 6; rows -= 6, a += 6 * lda, c += 6 * ldc)
        tile<6, V>(a, lda, b, ldb, c, ldc, pairs, add);
    switch (rows) {
        case 5: return tile<5, V>(a, lda, b, ldb, c, ldc, pairs, add);
        case 4: return tile<4, V>(a, lda, b, ldb, c, ldc, pairs, add);
        case 3: return tile<3, V>(a, lda, b, ldb, c, ldc, pairs, add);
        case 2: return tile<2, V>(a, lda, b, ldb, c, ldc, pairs, add);
        case 1: return tile<1, V>(a, lda, b, ldb, c, ldc, pairs, add);
    }
}

// `columns` is a multiple of 32.
void product(int64_t rows, int64_t columns, int64_t pairs, const uint16_t* a, int64_t lda,
             const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool add) {
    for (; columns >= 64; columns -= 64, b += 64, c += 64)
        strip<4>(rows, a, lda, b, ldb, c, ldc, pairs, add);
    if (columns) strip<2>(rows, a, lda, b, ldb, c, ldc, pairs, add);
}

// Scores of some rows against panels of `pack_columns`.
void scores(int64_t rows, int64_t columns, int64_t d, HeadRows a, const uint32_t* panels, float* c) {
    for (int64_t j = 0; j < columns; j += PANEL)
        strip<4>(rows, a.data, a.stride, panels + j * d / 2, PANEL, c + j, COLUMNS, d / 2, false);
}

// 2^x for x <= 0, relative error below 3e-6; NaN stays NaN.
INLINE __m512 power(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-160.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.33335581e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

INLINE __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

INLINE void store(uint16_t* to, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(x));
}

// Panels for products over d: word (i, j) of a panel holds entries 2i, 2i + 1 of row j.
void pack_columns(HeadRows from, int64_t n, int64_t d, uint32_t* to) {
    for (int64_t j = 0; j < padded(n); ++j) {
        uint32_t* column = to + j / PANEL * PANEL * d / 2 + j % PANEL;
        for (int64_t i = 0; i < d / 2; ++i) {
            uint32_t both = 0;
            if (j < n) memcpy(&both, from.data + j * from.stride + 2 * i, 4);
            column[i * PANEL] = both;
        }
    }
}

// For products over rows: word (i, c) holds column c of rows 2i and 2i + 1.
void pack_rows(HeadRows from, int64_t n, int64_t d, uint32_t* to) {
    for (int64_t i = 0; i < padded(n); i += 2, to += d) {
        const uint16_t* row = from.data + i * from.stride;
        for (int64_t c = 0; c < d; ++c) {
            const uint32_t low = i < n ? row[c] : 0, high = i + 1 < n ? row[from.stride + c] : 0;
            to[c] = low | high << 16;
        }
    }
}

void transpose(HeadRows from, int64_t n, int64_t d, uint16_t* to) {
    const int64_t width = padded(n);
    for (int64_t i = 0; i < width; ++i)
        for (int64_t c = 0; c < d; ++c)
            to[c * width + i] = i < n ? from.data[i * from.stride + c] : 0;
}

}  // namespace
