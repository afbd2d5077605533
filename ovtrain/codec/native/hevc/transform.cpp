#include "transform.h"

#include <algorithm>
#include <array>

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

// Basis function k of an N-point transform; the DCT's rows are those of the 32-point one
template <int N, bool IS_DST>
const int16_t* basis(int k) {
    if constexpr (IS_DST)
        return DST[k];
    else
        return DCT[size_t(k * (32 / N))].data();
}

template <int N, bool IS_DST>
void transform(const Coefficients& block, int shift, int16_t* out, ptrdiff_t stride) {
    alignas(32) int16_t columns_done[N][N];
    for (int y = 0; y < N; ++y) {  // each column, one output row at a time
        int32_t sums[N] = {};
        for (int k = 0; k < block.rows; ++k) {
            const int factor = basis<N, IS_DST>(k)[y];
            const int16_t* row = block.values + k * N;
            for (int x = 0; x < block.columns; ++x) sums[x] += factor * row[x];
        }
        for (int x = 0; x < block.columns; ++x) columns_done[y][x] = clip16((sums[x] + 64) >> 7);
    }
    const int round = 1 << (shift - 1);
    for (int y = 0; y < N; ++y, out += stride) {  // each row
        int32_t sums[N] = {};
        for (int k = 0; k < block.columns; ++k) {
            const int factor = columns_done[y][k];
            const int16_t* function = basis<N, IS_DST>(k);
            for (int x = 0; x < N; ++x) sums[x] += factor * function[x];
        }
        for (int x = 0; x < N; ++x) out[x] = int16_t((sums[x] + round) >> shift);
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
