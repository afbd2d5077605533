// What the AVX-512 files of the search for nearest centers share; nothing of it leaves them.
#pragma once

#include "nearest.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t PANEL = 64;  // centers of a panel: four registers

constexpr double UNIT = 0x1p-24;  // of rounding to float32

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t pairs_of(int64_t width) { return (width + 1) / 2; }
INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xFFFF : __mmask16((1u << n) - 1); }

INLINE __m512 values(Points points, const void* row, int64_t i, __mmask16 lanes) {
    if (points.half) {
        const uint16_t* from = static_cast<const uint16_t*>(row) + i;
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from));
    }
    return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(row) + i);
}

INLINE __m512d sum_of_squares(__m512 x, __m512d sum) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_fmadd_pd(high, high, _mm512_fmadd_pd(low, low, sum));
}

struct Norms {
    double squares, lost;  // |x - mean|^2 and that of what bfloat16 leaves out
};

// A row becomes bfloat16 relative to the mean, its pairs of columns `stride` words apart.
INLINE Norms centre(Points points, int64_t row, const float* mean, uint32_t* to, int64_t stride) {
    __m512d squares = _mm512_setzero_pd(), lost = squares;
    for (int64_t i = 0; i < points.width; i += 16) {
        const __mmask16 lanes = first_lanes(points.width - i);
        const __m512 middle = _mm512_maskz_loadu_ps(lanes, mean + i);
        const __m512 x = _mm512_sub_ps(values(points, points.row(row), i, lanes), middle);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
        const __m512 wide = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
        squares = sum_of_squares(x, squares);
        lost = sum_of_squares(_mm512_sub_ps(x, wide), lost);
        uint32_t words[8];
        memcpy(words, &rounded, 32);
        const int64_t count = least_of(8, pairs_of(points.width - i));
        for (int64_t k = 0; k < count; ++k) to[(i / 2 + k) * stride] = words[k];
    }
    return {_mm512_reduce_add_pd(squares), _mm512_reduce_add_pd(lost)};
}

}  // namespace
