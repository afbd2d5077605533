// Inverse transforms (ITU-T H.265, 8.6.4.2 - 8.6.8) of one luma block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ovtrain::hevc {

// A square block of scaled coefficients, row by row, and how far they reach.
struct Coefficients {
    const int16_t* values;
    int log2_size;
    int columns, rows;  // all behind them are zero
};

// 8.6.4.2: DCT, or the DST of 4x4 intra blocks; ``out`` gets the residual, rows ``stride`` apart
void inverse_transform(const Coefficients& block, bool dst, int bit_depth, int16_t* out,
                       ptrdiff_t stride);

// 8.6.4.2 with transform_skip_flag: scaled samples instead of frequencies
void skip_transform(const Coefficients& block, int bit_depth, int16_t* out, ptrdiff_t stride);

// Lossless: the levels are the residual.
void copy_levels(const Coefficients& block, int16_t* out, ptrdiff_t stride);

// 8.6.2: the block turned by 180 degrees (transform_skip_rotation_enabled_flag)
void rotate(int16_t* out, int size, ptrdiff_t stride);

// 8.6.5, 8.6.6: each sample adds to the next one, along rows or along columns
void accumulate(int16_t* out, int size, ptrdiff_t stride, bool vertical);

}  // namespace ovtrain::hevc
