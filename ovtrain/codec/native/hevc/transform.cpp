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
constexpr int16_t DCT_4[4][4] = {{64, 64, 64, 64}, {83, 36, -36, -83}, {64, -64, -64, 64},
                                 {36, -83, 83, -36}};

int16_t clip16(int value) { return int16_t(std::clamp(value, -32768, 32767)); }

// Basis functions of an N-point DCT, every (32 / N)-th of the 32-point one, in the pairs that a
// multiply-add wants: 4q with 4q + 2, which are even about the middle, and 4q + 1 with 4q + 3, which
// are odd. The first half of each tells the second.
template <int N>
struct Basis {
    alignas(16) int16_t pairs[2][N / 4][N / 2][2];

    constexpr Basis() : pairs{} {
        for (int k = 0; k < N; ++k)
            for (int n = 0; n < N / 2; ++n)
                pairs[k % 2][k / 4][n][k % 4 / 2] = DCT[size_t(k * (32 / N))][size_t(n)];
    }
};

template <int N>
constexpr Basis<N> BASIS;

// Four sums of 32 bits, and four pairs of 16-bit factors
#if defined(__SSE2__)
using Sums = __m128i;
using Pairs = __m128i;

inline Sums zero() { return _mm_setzero_si128(); }
inline Sums add(Sums a, Sums b) { return _mm_add_epi32(a, b); }
inline Sums subtract(Sums a, Sums b) { return _mm_sub_epi32(a, b); }
inline Sums reverse(Sums a) { return _mm_shuffle_epi32(a, 0x1B); }
inline Pairs load(const int16_t (*pairs)[2]) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(pairs));
}
inline Pairs repeat(const int16_t* pair) {
    int32_t both = 0;
    std::memcpy(&both, pair, sizeof both);
    return _mm_set1_epi32(both);
}
inline Pairs interleave(const int16_t* first, const int16_t* second) {
    return _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(first)),
                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second)));
}
inline Sums multiply_add(Sums sums, Pairs a, Pairs b) {
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
inline Sums add(Sums a, const Sums& b) {
    for (int i = 0; i < 4; ++i) a.value[i] += b.value[i];
    return a;
}
inline Sums subtract(Sums a, const Sums& b) {
    for (int i = 0; i < 4; ++i) a.value[i] -= b.value[i];
    return a;
}
inline Sums reverse(const Sums& a) {
    return {{a.value[3], a.value[2], a.value[1], a.value[0]}};
}
inline Pairs load(const int16_t (*pairs)[2]) {
    Pairs found;
    std::memcpy(&found, pairs, sizeof found);
    return found;
}
inline Pairs repeat(const int16_t* pair) {
    return {{{pair[0], pair[1]}, {pair[0], pair[1]}, {pair[0], pair[1]}, {pair[0], pair[1]}}};
}
inline Pairs interleave(const int16_t* first, const int16_t* second) {
    Pairs found;
    for (int i = 0; i < 4; ++i) {
        found.value[i][0] = first[i];
        found.value[i][1] = second[i];
    }
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

// Columns first: middle[x][y] is output row y of column x, so that the rows' pairs lie side by side.
template <int N>
void transform_columns(const Coefficients& block, int16_t (&middle)[N][N]) {
    const auto& basis = BASIS<N>.pairs;
    const int quads = (block.rows + 3) / 4;
    for (int x = 0; x < block.columns; x += 4) {
        Pairs even[N / 4], odd[N / 4];
        for (int q = 0; q < quads; ++q) {
            const int16_t* row = block.values + 4 * q * N + x;
            even[q] = interleave(row, row + 2 * N);
            odd[q] = interleave(row + N, row + 3 * N);
        }
        for (int y = 0; y < N / 2; ++y) {
            Sums evens = zero(), odds = zero();
            for (int q = 0; q < quads; ++q) {
                evens = multiply_add(evens, even[q], repeat(basis[0][q][y]));
                odds = multiply_add(odds, odd[q], repeat(basis[1][q][y]));
            }
            store(add(evens, odds), 64, 7, middle[y] + x);
            store(subtract(evens, odds), 64, 7, middle[N - 1 - y] + x);
        }
    }
}

template <int N>
void transform_row(const int16_t* row, int quads, int shift, int16_t* out) {
    const auto& basis = BASIS<N>.pairs;
    Sums evens[N / 8], odds[N / 8];
    for (int group = 0; group < N / 8; ++group) evens[group] = odds[group] = zero();
    for (int q = 0; q < quads; ++q) {
        const int16_t four[4] = {row[4 * q], row[4 * q + 2], row[4 * q + 1], row[4 * q + 3]};
        const Pairs even = repeat(four), odd = repeat(four + 2);
        for (int group = 0; group < N / 8; ++group) {
            evens[group] = multiply_add(evens[group], load(basis[0][q] + 4 * group), even);
            odds[group] = multiply_add(odds[group], load(basis[1][q] + 4 * group), odd);
        }
    }
    const int round = 1 << (shift - 1);
    for (int group = 0; group < N / 8; ++group) {
        store(add(evens[group], odds[group]), round, shift, out + 4 * group);
        store(reverse(subtract(evens[group], odds[group])), round, shift, out + N - 4 - 4 * group);
    }
}

template <int N>
void transform(const Coefficients& block, int shift, int16_t* out, ptrdiff_t stride) {
    alignas(16) int16_t middle[N][N];
    transform_columns<N>(block, middle);
    const int quads = (block.columns + 3) / 4;
    for (int y = 0; y < N; ++y, out += stride) transform_row<N>(middle[y], quads, shift, out);
}

// 4x4 blocks: of the DCT, or the DST of intra blocks
void transform_4x4(const Coefficients& block, bool dst, int shift, int16_t* out, ptrdiff_t stride) {
    const auto& basis = dst ? DST : DCT_4;
    int16_t middle[4][4];
    for (int y = 0; y < 4; ++y)
        for (int x = 0; x < 4; ++x) {
            int sum = 0;
            for (int k = 0; k < 4; ++k) sum += basis[k][y] * block.values[4 * k + x];
            middle[y][x] = clip16((sum + 64) >> 7);
        }
    for (int y = 0; y < 4; ++y, out += stride)
        for (int x = 0; x < 4; ++x) {
            int sum = 0;
            for (int k = 0; k < 4; ++k) sum += basis[k][x] * middle[y][k];
            out[x] = clip16((sum + (1 << (shift - 1))) >> shift);
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
    if (dst) return transform_4x4(block, true, shift, out, stride);
    if (block.columns == 1 && block.rows == 1) return constant(block, shift, out, stride);
    switch (block.log2_size) {
        case 2: return transform_4x4(block, false, shift, out, stride);
        case 3: return transform<8>(block, shift, out, stride);
        case 4: return transform<16>(block, shift, out, stride);
        default: return transform<32>(block, shift, out, stride);
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
