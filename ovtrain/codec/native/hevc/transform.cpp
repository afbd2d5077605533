#include "transform.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ovtrain::hevc {

namespace {

using Matrix = std::array<std::array<int16_t, 32>, 32>;

// (8-300) - (8-302): 64 sqrt(2) cos(j pi / 64) as the standard rounds it; of angle 0 only the
// constant basis function is needed
constexpr int16_t COSINE[33] = {64, 90, 90, 90, 89, 88, 87, 85, 83, 82, 80, 78, 75, 73, 70, 67, 64,
                                61, 57, 54, 50, 46, 43, 38, 36, 31, 25, 22, 18, 13, 9,  4,  0};

constexpr Matrix dct_matrix() {
    Matrix matrix{};
    for (int k = 0; k < 32; ++k)
        for (int n = 0; n < 32; ++n) {
            const int angle = (2 * n + 1) * k % 128;
            const int folded = angle > 64 ? 128 - angle : angle;
            const int value = folded > 32 ? -COSINE[64 - folded] : COSINE[folded];
            matrix[size_t(k)][size_t(n)] = int16_t(value);
        }
    return matrix;
}

constexpr Matrix DCT = dct_matrix();
constexpr int16_t DST[4][4] = {{29, 55, 74, 84}, {74, 74, 0, -74}, {84, -29, -74, 55},
                               {55, -84, 74, -29}};

int16_t clip16(int value) { return int16_t(std::clamp(value, -32768, 32767)); }

// Two neighbouring basis functions of an N-point transform, interleaved: what a multiply-add of
// pairs wants. The DCT's are every (32 / N)-th of the 32-point one.
template <int N>
struct Basis {
    alignas(16) int16_t pairs[N / 2][N][2];

    explicit constexpr Basis(bool dst) : pairs{} {
        for (int k = 0; k < N; ++k)
            for (int n = 0; n < N; ++n)
                pairs[k / 2][n][k % 2] =
                    dst ? DST[k & 3][n & 3] : DCT[size_t(k * (32 / N))][size_t(n)];
    }
};

template <int N, bool IS_DST>
constexpr Basis<N> BASIS{IS_DST};

// sums[0..3] += a0 * b[0], a1 * b[1] over four pairs
#if defined(__SSE2__)
using Sums = __m128i;

inline Sums zero() { return _mm_setzero_si128(); }
inline Sums repeat(int16_t low, int16_t high) {
    return _mm_set1_epi32(int32_t(uint32_t(uint16_t(high)) << 16 | uint16_t(low)));
}
inline Sums load(const int16_t (*pairs)[2]) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs));
}
inline Sums multiply_add(Sums sums, Sums a, Sums b) {
    return _mm_add_epi32(sums, _mm_madd_epi16(a, b));
}
// Rounded, shifted, clipped to 16 bits
inline void store(Sums sums, int round, int shift, int16_t* out) {
    const __m128i shifted = _mm_sra_epi32(_mm_add_epi32(sums, _mm_set1_epi32(round)),
                                          _mm_cvtsi32_si128(shift));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi32(shifted, shifted));
}
#else
struct Sums {
    int32_t value[4];
};
struct Pairs {
    int16_t value[4][2];
};

inline Sums zero() { return {{0, 0, 0, 0}}; }
inline Pairs repeat(int16_t low, int16_t high) {
    return {{{low, high}, {low, high}, {low, high}, {low, high}}};
}
inline Pairs load(const int16_t (*pairs)[2]) {
    Pairs found;
    std::memcpy(&found, pairs, sizeof found);
    return found;
}
inline Sums multiply_add(Sums sums, const Pairs& a, const Pairs& b) {
    for (int i = 0; i < 4; ++i)
        sums.value[i] += a.value[i][0] * b.value[i][0] + a.value[i][1] * b.value[i][1];
    return sums;
}
inline void store(const Sums& sums, int round, int shift, int16_t* out) {
    for (int i = 0; i < 4; ++i) out[i] = clip16((sums.value[i] + round) >> shift);
}
#endif

template <int N, bool IS_DST>
void transform(const Coefficients& block, int shift, int16_t* out, ptrdiff_t stride) {
    const auto& basis = BASIS<N, IS_DST>.pairs;
    const int row_pairs = (block.rows + 1) / 2, column_groups = (block.columns + 3) / 4;
    alignas(16) int16_t paired[N / 2][N][2];  // rows k and k + 1 of the block, interleaved
    for (int k = 0; k < row_pairs; ++k)
        for (int x = 0; x < 4 * column_groups; ++x) {
            paired[k][x][0] = block.values[2 * k * N + x];
            paired[k][x][1] = block.values[(2 * k + 1) * N + x];
        }
    alignas(16) int16_t columns_done[N][N];
    for (int y = 0; y < N; ++y)  // each column, one output row at a time
        for (int group = 0; group < column_groups; ++group) {
            auto sums = zero();
            for (int k = 0; k < row_pairs; ++k)
                sums = multiply_add(sums, load(paired[k] + 4 * group),
                                    repeat(basis[k][y][0], basis[k][y][1]));
            store(sums, 64, 7, columns_done[y] + 4 * group);
        }
    const int column_pairs = (block.columns + 1) / 2;
    for (int y = 0; y < N; ++y, out += stride)  // each row
        for (int group = 0; group < N / 4; ++group) {
            auto sums = zero();
            for (int k = 0; k < column_pairs; ++k)
                sums = multiply_add(sums, load(basis[k] + 4 * group),
                                    repeat(columns_done[y][2 * k], columns_done[y][2 * k + 1]));
            store(sums, 1 << (shift - 1), shift, out + 4 * group);
        }
}

// A block that holds its constant coefficient alone
void constant(const Coefficients& block, int shift, int16_t* out, ptrdiff_t stride) {
    const int column = clip16((64 * block.values[0] + 64) >> 7);
    const auto value = int16_t((64 * column + (1 << (shift - 1))) >> shift);
    const int size = 1 << block.log2_size;
    for (int y = 0; y < size; ++y, out += stride) std::fill_n(out, size, value);
}

}  // namespace

void inverse_transform(const Coefficients& block, bool dst, int bit_depth, int16_t* out,
                       ptrdiff_t stride) {
    const int shift = 20 - bit_depth;
    if (dst) return transform<4, true>(block, shift, out, stride);
    if (block.columns == 1 && block.rows == 1) return constant(block, shift, out, stride);
    switch (block.log2_size) {
        case 2: return transform<4, false>(block, shift, out, stride);
        case 3: return transform<8, false>(block, shift, out, stride);
        case 4: return transform<16, false>(block, shift, out, stride);
        default: return transform<32, false>(block, shift, out, stride);
    }
}

void skip_transform(const Coefficients& block, int bit_depth, int16_t* out, ptrdiff_t stride) {
    const int size = 1 << block.log2_size, shift = 20 - bit_depth;
    const int scale = 1 << (5 + block.log2_size), round = 1 << (shift - 1);
    for (int y = 0; y < size; ++y, out += stride)
        for (int x = 0; x < size; ++x)
            out[x] = int16_t((block.values[y * size + x] * scale + round) >> shift);
}

void copy_levels(const Coefficients& block, int16_t* out, ptrdiff_t stride) {
    const int size = 1 << block.log2_size;
    for (int y = 0; y < size; ++y, out += stride)
        std::copy_n(block.values + y * size, size, out);
}

void rotate(int16_t* out, int size, ptrdiff_t stride) {
    for (int i = 0; i < size * size / 2; ++i) {
        const int j = size * size - 1 - i;
        std::swap(out[i / size * stride + i % size], out[j / size * stride + j % size]);
    }
}

void accumulate(int16_t* out, int size, ptrdiff_t stride, bool vertical) {
    const ptrdiff_t back = vertical ? stride : 1;
    for (int y = vertical ? 1 : 0; y < size; ++y)
        for (int x = vertical ? 0 : 1; x < size; ++x) {
            int16_t& sample = out[y * stride + x];
            sample = int16_t(sample + (&sample)[-back]);
        }
}

}  // namespace ovtrain::hevc
