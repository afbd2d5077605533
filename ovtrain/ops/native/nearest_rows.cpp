// Rows of points and centers: packing, distances, integer sums. Compiled for AVX-512, like
// attention.cpp; it holds nothing that other files might share. Products and sums of float32 are not
// contracted: the reference rounds both.

#include "nearest.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "nearest_lanes.h"

#include <math.h>

namespace {

INLINE __m512 folded(const __m512* sum) {
    return _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
}

INLINE float total(__m512 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace

int64_t panel_columns(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }
int64_t panel_words(int64_t count, int64_t width) { return panel_columns(count) * pairs_of(width); }

void pack_panel(const Centers& c, int64_t panel, uint32_t* panels, float* bias, double& longest,
                double& off) {
    const Points rows{c.rows, false, c.width};
    const int64_t first = panel * PANEL, last = least_of(first + PANEL, c.count);
    uint32_t* const to = panels + first * pairs_of(c.width);
    memset(to, 0, size_t(PANEL * pairs_of(c.width)) * 4);
    for (int64_t i = first; i < first + PANEL; ++i) bias[i] = -INFINITY;
    for (int64_t i = first; i < last; ++i) {
        const Norms norms = centre(rows, i, c.mean, to + i - first, PANEL);
        const double length = sqrt(norms.squares);
        bias[i] = float(norms.squares * -0.5);
        longest = fmax(longest, length);  // takes no NaN, which the bias has then
        off = fmax(off, sqrt(norms.lost) + length * UNIT);  // what is rounded is rounded itself
    }
}

void widen(Points points, int64_t row, float* to) {
    for (int64_t i = 0; i < points.width; i += 16) {
        const __mmask16 lanes = first_lanes(points.width - i);
        _mm512_mask_storeu_ps(to + i, lanes, values(points, points.row(row), i, lanes));
    }
}

void squared_distances(const float* x, const float* const* rows, const float* const* next,
                       int64_t width, float* out) {
    __m512 sum[4][4];
    for (int r = 0; r < 4; ++r)
        for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 64 <= width; i += 64)
        for (int v = 0; v < 4; ++v) {
            const __m512 point = _mm512_loadu_ps(x + i + 16 * v);
            for (int r = 0; r < 4; ++r) {
                const __m512 d = _mm512_sub_ps(point, _mm512_loadu_ps(rows[r] + i + 16 * v));
                sum[r][v] = _mm512_add_ps(sum[r][v], _mm512_mul_ps(d, d));
                _mm_prefetch(reinterpret_cast<const char*>(next[r] + i + 16 * v), _MM_HINT_T0);
            }
        }
    for (int v = 0; v < 4 && i < width; ++v, i += 16) {
        const __mmask16 lanes = first_lanes(width - i);
        const __m512 point = _mm512_maskz_loadu_ps(lanes, x + i);
        for (int r = 0; r < 4; ++r) {
            const __m512 d = _mm512_sub_ps(point, _mm512_maskz_loadu_ps(lanes, rows[r] + i));
            sum[r][v] = _mm512_add_ps(sum[r][v], _mm512_mul_ps(d, d));
        }
    }
    for (int r = 0; r < 4; ++r) out[r] = total(folded(sum[r]));
}

void add_fixed(Points points, int64_t row, int64_t first, int64_t last, double scale, int64_t* to) {
    const __m512d factor = _mm512_set1_pd(scale);
    for (int64_t i = first; i < last; i += 16) {
        const __mmask16 lanes = first_lanes(last - i);
        const __m512 x = values(points, points.row(row), i, lanes);
        const __m512d halves[2] = {_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
                                   _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
        for (int h = 0; h < 2; ++h) {
            const __mmask8 own = __mmask8(lanes >> 8 * h);
            const __m512i fixed = _mm512_cvtpd_epi64(_mm512_mul_pd(halves[h], factor));
            int64_t* const at = to + i + 8 * h;
            const __m512i sum = _mm512_add_epi64(_mm512_maskz_loadu_epi64(own, at), fixed);
            _mm512_mask_storeu_epi64(at, own, sum);
        }
    }
}

#else

int64_t panel_columns(int64_t) { return 0; }
int64_t panel_words(int64_t, int64_t) { return 0; }
void pack_panel(const Centers&, int64_t, uint32_t*, float*, double&, double&) {}
void widen(Points, int64_t, float*) {}
void squared_distances(const float*, const float* const*, const float* const*, int64_t, float*) {}
void add_fixed(Points, int64_t, int64_t, int64_t, double, int64_t*) {}

#endif
