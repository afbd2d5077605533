// Candidates: centers whose approximate scores come near the best. Compiled for AVX-512, like
// attention.cpp; it holds nothing that other files might share.

#include "nearest.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "nearest_lanes.h"

#include <float.h>
#include <math.h>
#include <string.h>

namespace {

constexpr int64_t TILE = 6;       // points of a tile: with them 24 sums
constexpr int64_t DEPTH = 128;    // pairs of columns multiplied at a time: a panel's stay in L1
constexpr int64_t ROWS = 192;     // points of a block of width 1024: in bfloat16 they stay in L2
constexpr int64_t FRESH = 48;     // candidates that come in before the bar is raised again
constexpr int64_t ROOM = 2048;    // for candidates; memory that none come to is never touched
constexpr int64_t HALVINGS = 12;  // to find the bar
constexpr double MARGIN = 1 + 1e-6;

INLINE int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

// Centred.errors of the reference, but for the sums: those of blocks of columns are added up, and
// each step of a sum is rounded to the nearest twice.
double error_of(const Centers& c, double length, double off) {
    const double most = c.longest + c.off, rounded = length + off;
    const double operands = (off + UNIT * length) * c.longest + rounded * c.off;
    const double steps = 2 * DEPTH + double(pairs_of(c.width) / DEPTH + 2);
    const double sums = 2 * UNIT * steps * rounded * most;
    const double bias = 4 * UNIT * c.longest * c.longest + 2 * UNIT * rounded * most;
    const double tiny = double(c.width) * 0x1p-120 * (1 + rounded + most);
    return (operands + sums + bias + tiny) * MARGIN;
}

void prepare(const Centers& c, Points points, int64_t first, Block& b) {
    const int64_t pairs = pairs_of(c.width);
    memset(b.packed, 0, size_t(tiles_of(b.rows) * TILE * pairs) * 4);
    for (int64_t r = 0; r < tiles_of(b.rows) * TILE; ++r) {
        b.count[r] = 0;
        b.limit[r] = int32_t(b.top + FRESH);
        b.least[r] = INFINITY;
        if (r >= b.rows) continue;
        uint32_t* const to = b.packed + r / TILE * TILE * pairs + r % TILE;
        const Norms norms = centre(points, first + r, c.mean, to, TILE);
        const double length = sqrt(norms.squares);
        const double widest = (length + c.longest) * (length + c.longest);
        b.squares[r] = norms.squares * (1 - 8 * UNIT);
        b.error[r] = error_of(c, length, sqrt(norms.lost));
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
    b.limit[r] = int32_t(least_of(kept + FRESH + kept / 4, b.room - PANEL));
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

// Scores of TILE points and a panel over some pairs of columns, plus `partial` unless they are the
// first; they go there or, the last, to the candidates.
INLINE void multiply(const Centers& c, Block& b, int64_t tile, int64_t panel, int64_t from,
                     int64_t to) {
    const int64_t pairs = pairs_of(c.width);
    const uint32_t* left = b.packed + (tile * pairs + from) * TILE;
    const uint32_t* right = c.panels + (panel * pairs + from) * PANEL;
    float* const partial = b.partial + tile * TILE * PANEL;
    __m512 sum[TILE][4];
    for (int m = 0; m < TILE; ++m)
        for (int v = 0; v < 4; ++v) sum[m][v] = _mm512_setzero_ps();
    for (int64_t k = from; k < to; ++k, left += TILE, right += PANEL) {
        __m512bh center[4];
        for (int v = 0; v < 4; ++v) center[v] = (__m512bh)_mm512_loadu_si512(right + 16 * v);
        for (int m = 0; m < TILE; ++m) {
            const __m512bh point = (__m512bh)_mm512_set1_epi32(int(left[m]));
            for (int v = 0; v < 4; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], point, center[v]);
        }
    }
    if (from)
        for (int m = 0; m < TILE; ++m)
            for (int v = 0; v < 4; ++v)
                sum[m][v] = _mm512_add_ps(sum[m][v], _mm512_load_ps(partial + m * PANEL + 16 * v));
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

}  // namespace

bool nearest_runs_here() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int64_t block_rows(int64_t width) {
    const int64_t rows = ROWS * 1024 / width / TILE * TILE;
    return rows > ROWS ? ROWS : rows < ROWS / 2 ? ROWS / 2 : rows;
}

int64_t candidate_room(int64_t top) { return 2 * top + ROOM; }

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

#else

bool nearest_runs_here() { return false; }
int64_t block_rows(int64_t) { return 0; }
int64_t candidate_room(int64_t) { return 0; }
int64_t lay_out(Block&, int64_t, void*) { return 0; }
void find_candidates(const Centers&, Points, int64_t, Block&) {}

#endif
