// Compiled for AVX-512, like attention.cpp; it holds nothing that other files might share. Products
// and sums of float32 are not contracted: the reference rounds both.

#include "nearest.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t PANEL = 64;    // centers of a panel: four registers
constexpr int64_t TILE = 6;      // points of a tile: with them 24 sums
constexpr int64_t DEPTH = 128;   // pairs of columns multiplied at a time: a panel's stay in L1
constexpr int64_t ROWS = 192;    // points of a block of width 1024: in bfloat16 they stay in L2
constexpr int64_t FRESH = 48;    // candidates that come in before the bar is raised again
constexpr int64_t HALVINGS = 12;  // to find the bar
constexpr double UNIT = 0x1p-24;
constexpr double MARGIN = 1 + 1e-6;

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t pairs_of(int64_t width) { return (width + 1) / 2; }
INLINE int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }
INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xFFFF : __mmask16((1u << n) - 1); }

INLINE __m512 values(Points points, const void* row, int64_t i, __mmask16 lanes) {
    if (points.half) {
        const uint16_t* from = static_cast<const uint16_t*>(row) + i;
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from));
    }
    return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(row) + i);
}

// A point becomes bfloat16 relative to the mean, its pairs of columns TILE words apart.
void centre(const Centers& c, Points points, const void* row, uint32_t* to, float& squares,
            float& off) {
    __m512 all = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
    for (int64_t i = 0; i < c.width; i += 16) {
        const __mmask16 lanes = first_lanes(c.width - i);
        const __m512 mean = _mm512_maskz_loadu_ps(lanes, c.mean + i);
        const __m512 x = _mm512_sub_ps(values(points, row, i, lanes), mean);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
        const __m512 wide = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
        const __m512 rest = _mm512_sub_ps(x, wide);
        all = _mm512_add_ps(all, _mm512_mul_ps(x, x));
        lost = _mm512_add_ps(lost, _mm512_mul_ps(rest, rest));
        uint32_t words[8];
        memcpy(words, &rounded, 32);
        const int64_t count = least_of(8, pairs_of(c.width - i));
        for (int64_t k = 0; k < count; ++k) to[(i / 2 + k) * TILE] = words[k];
    }
    squares = _mm512_reduce_add_ps(all);
    off = _mm512_reduce_add_ps(lost);
}

// Centred.errors of the reference.
double error_of(const Centers& c, double length, double off) {
    const double most = c.longest + c.off, rounded = length + off;
    const double operands = (off + UNIT * length) * c.longest + rounded * c.off;
    const double sums = 4 * UNIT * double(c.width) * rounded * most;
    const double bias = 4 * UNIT * c.longest * c.longest + 2 * UNIT * rounded * most;
    const double tiny = double(c.width) * 0x1p-120 * (1 + rounded + most);
    return (operands + sums + bias + tiny) * MARGIN;
}

void prepare(const Centers& c, Points points, int64_t first, Block& b) {
    const int64_t pairs = pairs_of(c.width);
    const double more = 1 + double(c.width / 16 + 20) * 2 * UNIT;  // float32 sums of squares
    memset(b.packed, 0, size_t(tiles_of(b.rows) * TILE * pairs) * 4);
    for (int64_t r = 0; r < tiles_of(b.rows) * TILE; ++r) {
        b.count[r] = 0;
        b.limit[r] = int32_t(b.top + FRESH);
        b.least[r] = INFINITY;
        if (r >= b.rows) continue;
        float squares, off;
        uint32_t* const to = b.packed + r / TILE * TILE * pairs + r % TILE;
        centre(c, points, points.row(first + r), to, squares, off);
        const double length = sqrt(double(squares) * more), lost = sqrt(double(off) * more);
        const double widest = (length + c.longest) * (length + c.longest);
        b.squares[r] = double(squares) / more * (1 - 8 * UNIT);
        b.error[r] = error_of(c, length, lost);
        b.window[r] = float((2 * b.error[r] + 2 * distance_error(c.width) * widest +
                             smallest_error(c.width)) * MARGIN);
        b.full[r] = !(widest < 1e37) || !(b.error[r] < 1e37);  // products may leave float32
        if (!b.full[r]) b.least[r] = -FLT_MAX;
    }
}

INLINE int64_t at_least(const float* score, int64_t count, float bar) {
    const __m512 level = _mm512_set1_ps(bar);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 16)
        found += __builtin_popcount(_mm512_mask_cmp_ps_mask(
            first_lanes(count - i), _mm512_loadu_ps(score + i), level, _CMP_GE_OQ));
    return found;
}

// A level that at least `top` of the scores reach, close to the top-th of them.
INLINE float bar_of(const float* score, int64_t count, int64_t top) {
    __m512 most = _mm512_set1_ps(score[0]), fewest = most;
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 x = _mm512_loadu_ps(score + i);
        most = _mm512_mask_max_ps(most, lanes, most, x);
        fewest = _mm512_mask_min_ps(fewest, lanes, fewest, x);
    }
    float low = _mm512_reduce_min_ps(fewest), high = _mm512_reduce_max_ps(most);
    if (top == 1) return high;
    for (int64_t n = 0; n < HALVINGS; ++n) {
        const float middle = low + (high - low) * 0.5f;
        const int64_t found = at_least(score, count, middle);
        (found >= top ? low : high) = middle;
        if (found == top) break;
    }
    return low;
}

// Raises the bar of a row and drops the candidates below it.
__attribute__((noinline)) void raise(Block& b, int64_t r) {
    const int64_t stride = b.room + PANEL;
    float* const score = b.score + r * stride;
    int32_t* const id = b.id + r * stride;
    const float bar = bar_of(score, b.count[r], b.top);
    const float least = bar - b.window[r];
    b.least[r] = least - fabsf(least) * 0x1p-22f;
    int32_t kept = 0;
    for (int64_t i = 0; i < b.count[r]; i += 16) {
        const __m512 x = _mm512_loadu_ps(score + i);
        const __m512i at = _mm512_loadu_si512(id + i);
        const __mmask16 good = _mm512_mask_cmp_ps_mask(
            first_lanes(b.count[r] - i), x, _mm512_set1_ps(b.least[r]), _CMP_GE_OQ);
        _mm512_storeu_ps(score + kept, _mm512_maskz_compress_ps(good, x));
        _mm512_storeu_si512(id + kept, _mm512_maskz_compress_epi32(good, at));
        kept += __builtin_popcount(good);
    }
    b.count[r] = kept;
    b.limit[r] = int32_t(least_of(kept + FRESH, b.room - PANEL));
    if (kept > b.room - PANEL) {
        b.full[r] = 1;
        b.count[r] = 0;
        b.least[r] = INFINITY;
    }
}

__attribute__((noinline)) void take(Block& b, int64_t r, const __m512* sum, uint64_t which,
                                    int32_t first) {
    float score[PANEL];
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(score + 16 * v, sum[v]);
    const int64_t stride = b.room + PANEL;
    int64_t n = b.count[r];
    for (; which; which &= which - 1, ++n) {
        const int i = __builtin_ctzll(which);
        b.score[r * stride + n] = score[i];
        b.id[r * stride + n] = first + i;
    }
    b.count[r] = int32_t(n);
    if (n > b.limit[r]) raise(b, r);
}

// Scores of TILE points and a panel over some pairs of columns, on top of `partial` unless they are
// the first; they go there or, the last, to the candidates.
INLINE void multiply(const Centers& c, Block& b, int64_t tile, int64_t panel, int64_t from,
                     int64_t to) {
    const int64_t pairs = pairs_of(c.width);
    const uint32_t* left = b.packed + (tile * pairs + from) * TILE;
    const uint32_t* right = c.panels + (panel * pairs + from) * PANEL;
    float* const partial = b.partial + tile * TILE * PANEL;
    __m512 sum[TILE][4];
    for (int m = 0; m < TILE; ++m)
        for (int v = 0; v < 4; ++v)
            sum[m][v] = from ? _mm512_load_ps(partial + m * PANEL + 16 * v) : _mm512_setzero_ps();
    for (int64_t k = from; k < to; ++k, left += TILE, right += PANEL) {
        __m512bh center[4];
        for (int v = 0; v < 4; ++v) center[v] = (__m512bh)_mm512_load_si512(right + 16 * v);
        for (int m = 0; m < TILE; ++m) {
            const __m512bh point = (__m512bh)_mm512_set1_epi32(int(left[m]));
            for (int v = 0; v < 4; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], point, center[v]);
        }
    }
    if (to < pairs) {
        for (int m = 0; m < TILE; ++m)
            for (int v = 0; v < 4; ++v) _mm512_store_ps(partial + m * PANEL + 16 * v, sum[m][v]);
        return;
    }
    __m512 bias[4];
    for (int v = 0; v < 4; ++v) bias[v] = _mm512_loadu_ps(c.bias + panel * PANEL + 16 * v);
    for (int m = 0; m < TILE; ++m) {
        const __m512 least = _mm512_set1_ps(b.least[tile * TILE + m]);
        uint64_t which = 0;
        for (int v = 0; v < 4; ++v) {
            sum[m][v] = _mm512_add_ps(sum[m][v], bias[v]);
            which |= uint64_t(_mm512_cmp_ps_mask(sum[m][v], least, _CMP_GE_OQ)) << 16 * v;
        }
        if (__builtin_expect(which != 0, 0))
            take(b, tile * TILE + m, sum[m], which, int32_t(panel * PANEL));
    }
}

struct Arena {
    uintptr_t start, at;
    template <typename T>
    void take(T*& to, int64_t count) {
        to = reinterpret_cast<T*>(at);
        at += uintptr_t(count * int64_t(sizeof(T)) + 63) / 64 * 64;
    }
};

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

bool nearest_runs_here() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int64_t block_rows(int64_t width) {
    const int64_t rows = ROWS * 1024 / width / TILE * TILE;
    return rows > ROWS ? ROWS : rows < ROWS / 4 ? ROWS / 4 : rows;
}

int64_t candidate_room(int64_t top) { return 2 * top + 256; }
int64_t panel_columns(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }
int64_t panel_words(int64_t count, int64_t width) { return panel_columns(count) * pairs_of(width); }

int64_t lay_out(Block& b, int64_t width, void* scratch) {
    Arena arena{reinterpret_cast<uintptr_t>(scratch), reinterpret_cast<uintptr_t>(scratch)};
    const int64_t rows = tiles_of(b.rows) * TILE, stride = b.room + PANEL;
    arena.take(b.packed, rows * pairs_of(width));
    arena.take(b.partial, rows * PANEL);
    arena.take(b.score, rows * stride);
    arena.take(b.id, rows * stride);
    arena.take(b.least, rows);
    arena.take(b.count, rows);
    arena.take(b.limit, rows);
    arena.take(b.squares, rows);
    arena.take(b.error, rows);
    arena.take(b.window, rows);
    arena.take(b.full, rows);
    return int64_t(arena.at - arena.start);
}

void pack_centers(const uint16_t* rounded, int64_t count, int64_t width, uint32_t* panels) {
    const int64_t pairs = pairs_of(width);
    for (int64_t j = 0; j < panel_columns(count); ++j) {
        uint32_t* const column = panels + j / PANEL * PANEL * pairs + j % PANEL;
        const uint16_t* const row = rounded + j * width;
        for (int64_t k = 0; k < pairs; ++k) {
            const uint32_t low = j < count ? row[2 * k] : 0;
            const uint32_t high = j < count && 2 * k + 1 < width ? row[2 * k + 1] : 0;
            column[k * PANEL] = low | high << 16;
        }
    }
}

void find_candidates(const Centers& c, Points points, int64_t first, Block& b) {
    prepare(c, points, first, b);
    const int64_t pairs = pairs_of(c.width);
    for (int64_t panel = 0; panel < panel_columns(c.count) / PANEL; ++panel)
        for (int64_t from = 0; from < pairs; from += DEPTH)
            for (int64_t tile = 0; tile < tiles_of(b.rows); ++tile)
                multiply(c, b, tile, panel, from, least_of(from + DEPTH, pairs));
    for (int64_t r = 0; r < b.rows; ++r)
        if (b.count[r] > b.top) raise(b, r);
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

bool nearest_runs_here() { return false; }
int64_t block_rows(int64_t) { return 0; }
int64_t candidate_room(int64_t) { return 0; }
int64_t panel_columns(int64_t) { return 0; }
int64_t panel_words(int64_t, int64_t) { return 0; }
int64_t lay_out(Block&, int64_t, void*) { return 0; }
void pack_centers(const uint16_t*, int64_t, int64_t, uint32_t*) {}
void find_candidates(const Centers&, Points, int64_t, Block&) {}
void widen(Points, int64_t, float*) {}
void squared_distances(const float*, const float* const*, const float* const*, int64_t, float*) {}
void add_fixed(Points, int64_t, int64_t, int64_t, double, int64_t*) {}

#endif
