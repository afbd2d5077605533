// The only file compiled for AVX-512; it holds nothing that other files might share.

#include "attention.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

#include "attention_tiles.h"

#include <math.h>

namespace {

struct Arena {
    uintptr_t at;
    template <typename T>
    T* take(int64_t count) {
        T* found = reinterpret_cast<T*>(at);
        at += uintptr_t(count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return found;
    }
};

struct Forward {
    uint32_t *keys, *values;
    float *score, *sum, *peak, *total;
    uint16_t* weight;
    Forward(Arena& arena, int64_t n, int64_t d)
        : keys(arena.take<uint32_t>(padded(n) * d / 2)),
          values(arena.take<uint32_t>(padded(n) * d / 2)),
          score(arena.take<float>(ROWS * COLUMNS)),
          sum(arena.take<float>(ROWS * d)),
          peak(arena.take<float>(ROWS)),
          total(arena.take<float>(ROWS)),
          weight(arena.take<uint16_t>(ROWS * COLUMNS)) {}
};

struct Backward {
    uint32_t *queries, *grads, *query_rows, *grad_rows, *pairs;
    uint16_t *keys, *weight, *slope;
    float *score, *towards, *lse, *delta, *dq, *dk, *dv;
    Backward(Arena& arena, int64_t n, int64_t d)
        : queries(arena.take<uint32_t>(padded(n) * d / 2)),
          grads(arena.take<uint32_t>(padded(n) * d / 2)),
          query_rows(arena.take<uint32_t>(padded(n) * d / 2)),
          grad_rows(arena.take<uint32_t>(padded(n) * d / 2)),
          pairs(arena.take<uint32_t>(ROWS / 2 * COLUMNS)),
          keys(arena.take<uint16_t>(padded(n) * d)),
          weight(arena.take<uint16_t>(ROWS * COLUMNS)),
          slope(arena.take<uint16_t>(ROWS * COLUMNS)),
          score(arena.take<float>(ROWS * COLUMNS)),
          towards(arena.take<float>(ROWS * COLUMNS)),
          lse(arena.take<float>(padded(n))),
          delta(arena.take<float>(padded(n))),
          dq(arena.take<float>(padded(n) * d)),
          dk(arena.take<float>(ROWS * d)),
          dv(arena.take<float>(ROWS * d)) {}
};

// Scores of one query become weights relative to the peak so far; earlier sums are brought to it.
INLINE void soften(const Forward& f, int64_t r, int64_t columns, int64_t d, float factor) {
    float* score = f.score + r * COLUMNS;
    __m512 most = _mm512_loadu_ps(score);
    for (int64_t j = 16; j < columns; j += 16)
        most = _mm512_max_ps(most, _mm512_loadu_ps(score + j));
    const float top = fmaxf(f.peak[r], _mm512_reduce_max_ps(most) * factor);
    const float kept = exp2f(f.peak[r] - top);
    const __m512 scale = _mm512_set1_ps(factor), shift = _mm512_set1_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int64_t j = 0; j < columns; j += 16) {
        const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(score + j), scale, shift);
        const __m512 weight = power(x);
        total = _mm512_add_ps(total, weight);
        store(f.weight + r * COLUMNS + j, weight);
    }
    f.peak[r] = top;
    f.total[r] = f.total[r] * kept + _mm512_reduce_add_ps(total);
    for (int64_t c = 0; c < d; c += 16) {
        float* sum = f.sum + r * d + c;
        _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), _mm512_set1_ps(kept)));
    }
}

// Weights of some keys (rows) for some queries (columns) and the gradient of their scores, as rows
// of bfloat16 and, the gradient, packed in pairs of rows, too.
INLINE void slopes(const Backward& b, int64_t rows, int64_t first, int64_t columns, float scale) {
    const __m512 factor = _mm512_set1_ps(scale * LOG2E), back = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < columns; j += 16) {
        const __m512 lse = _mm512_loadu_ps(b.lse + first + j);
        const __m512 delta = _mm512_loadu_ps(b.delta + first + j);
        __m512i low = _mm512_setzero_si512();
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = r * COLUMNS + j;
            const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(b.score + at), factor, lse);
            const __m512 weight = power(x);
            const __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(b.towards + at), delta);
            const __m256i slope = rounded(_mm512_mul_ps(_mm512_mul_ps(weight, back), difference));
            store(b.weight + at, weight);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(b.slope + at), slope);
            const __m512i wide = _mm512_cvtepu16_epi32(slope);
            const __m512i both = r % 2 ? _mm512_or_si512(low, _mm512_slli_epi32(wide, 16)) : wide;
            low = wide;
            _mm512_storeu_si512(b.pairs + r / 2 * COLUMNS + j, both);
        }
    }
}

// delta = grad . out, per query.
INLINE float along(const uint16_t* a, const uint16_t* b, int64_t d) {
    float sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += number(a[c]) * number(b[c]);
    return sum;
}

INLINE void give(const float* from, int64_t rows, int64_t d, HeadRows to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < d; c += 16)
            store(to.data + r * to.stride + c, _mm512_loadu_ps(from + r * d + c));
}

INLINE HeadRows from_row(HeadRows rows, int64_t i) {
    return {rows.data + i * rows.stride, rows.stride};
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

bool attention_runs_here() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq");
}

int64_t forward_scratch(HeadShape shape) {
    Arena arena{0};
    Forward(arena, shape.n, shape.d);
    return int64_t(arena.at);
}

int64_t backward_scratch(HeadShape shape) {
    Arena arena{0};
    Backward(arena, shape.n, shape.d);
    return int64_t(arena.at);
}

void attend(HeadShape shape, HeadRows q, HeadRows k, HeadRows v, HeadRows out, float* lse,
            void* scratch) {
    const int64_t n = shape.n, d = shape.d;
    Arena arena{reinterpret_cast<uintptr_t>(scratch)};
    const Forward f(arena, n, d);
    pack_columns(k, n, d, f.keys);
    pack_rows(v, n, d, f.values);
    for (int64_t i = 0; i < n; i += ROWS) {
        const int64_t rows = least(ROWS, n - i);
        for (int64_t r = 0; r < rows; ++r) f.peak[r] = -INFINITY, f.total[r] = 0;
        memset(f.sum, 0, size_t(ROWS * d) * 4);
        for (int64_t j = 0; j < n; j += COLUMNS) {
            const int64_t columns = least(COLUMNS, padded(n) - j);
            scores(rows, columns, d, from_row(q, i), f.keys + j * d / 2, f.score);
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t c = n - j; c < columns; ++c) f.score[r * COLUMNS + c] = -INFINITY;
                soften(f, r, columns, d, shape.scale * LOG2E);
            }
            product(rows, d, columns / 2, f.weight, COLUMNS, f.values + j / 2 * d, d, f.sum, d,
                    true);
        }
        for (int64_t r = 0; r < rows; ++r) {
            const __m512 inverse = _mm512_set1_ps(1.0f / f.total[r]);
            lse[i + r] = f.peak[r] + log2f(f.total[r]);
            for (int64_t c = 0; c < d; c += 16)
                store(out.data + (i + r) * out.stride + c,
                      _mm512_mul_ps(_mm512_loadu_ps(f.sum + r * d + c), inverse));
        }
    }
}

void attend_backward(HeadShape shape, HeadRows q, HeadRows k, HeadRows v, HeadRows out,
                     const float* lse, HeadRows grad, HeadGradients to, void* scratch) {
    const int64_t n = shape.n, d = shape.d, width = padded(n);
    Arena arena{reinterpret_cast<uintptr_t>(scratch)};
    const Backward b(arena, n, d);
    pack_columns(q, n, d, b.queries);
    pack_columns(grad, n, d, b.grads);
    pack_rows(q, n, d, b.query_rows);
    pack_rows(grad, n, d, b.grad_rows);
    transpose(k, n, d, b.keys);
    for (int64_t i = 0; i < width; ++i) {  // weights of queries that pad are 0
        b.lse[i] = i < n ? lse[i] : 1e30f;
        b.delta[i] = i < n ? along(from_row(grad, i).data, from_row(out, i).data, d) : 0.0f;
    }
    memset(b.dq, 0, size_t(width * d) * 4);
    for (int64_t j = 0; j < n; j += ROWS) {
        const int64_t rows = least(ROWS, n - j);
        for (int64_t i = 0; i < width; i += COLUMNS) {
            const int64_t columns = least(COLUMNS, width - i);
            scores(rows, columns, d, from_row(k, j), b.queries + i * d / 2, b.score);
            scores(rows, columns, d, from_row(v, j), b.grads + i * d / 2, b.towards);
            slopes(b, rows, i, columns, shape.scale);
            const bool add = i > 0;
            product(rows, d, columns / 2, b.weight, COLUMNS, b.grad_rows + i / 2 * d, d, b.dv, d,
                    add);
            product(rows, d, columns / 2, b.slope, COLUMNS, b.query_rows + i / 2 * d, d, b.dk, d,
                    add);
            product(d, columns, (rows + 1) / 2, b.keys + j, width, b.pairs, COLUMNS, b.dq + i,
                    width, true);
        }
        give(b.dk, rows, d, from_row(to.k, j));
        give(b.dv, rows, d, from_row(to.v, j));
    }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < d; c += 16) {
            const __m512i rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const __m512i at = _mm512_mullo_epi32(rows, _mm512_set1_epi32(int(width)));
            store(to.q.data + i * to.q.stride + c, _mm512_i32gather_ps(at, b.dq + c * width + i, 4));
        }
}

#else

bool attention_runs_here() { return false; }
int64_t forward_scratch(HeadShape) { return 0; }
int64_t backward_scratch(HeadShape) { return 0; }
void attend(HeadShape, HeadRows, HeadRows, HeadRows, HeadRows, float*, void*) {}
void attend_backward(HeadShape, HeadRows, HeadRows, HeadRows, HeadRows, const float*, HeadRows,
                     HeadGradients, void*) {}

#endif
