// Residual coding syntax (ITU-T H.265, 7.3.8.11), scaling (8.6.4.2) and the call of the transforms.
#pragma once

#include <array>
#include <vector>

#include "cabac.h"
#include "scans.h"
#include "slice_context.h"

namespace ovtrain::hevc {

// A transform block of luma (component 0) or chroma (1, 2).
struct TransformBlock {
    int log2_size;
    int component;
    bool inter;
    bool lossless;   // cu_transquant_bypass_flag
    int intra_mode;  // of this component; not looked at in inter blocks
    Scan scan;
    int qp;          // Qp'Y
};

class ResidualDecoder {
public:
    ResidualDecoder(const SliceContext& slice, Cabac& cabac) : slice_(slice), cabac_(cabac) {}

    // Parse the block; with ``out`` (luma only) also make its residual, rows ``stride`` apart.
    void decode(const TransformBlock& block, int16_t* out, ptrdiff_t stride);

private:
    struct Flags;
    struct SubBlock;
    // Contexts of sig_coeff_flag: the first one, that of the lowest coefficient, and the pattern
    // that says which one of them each place has.
    struct Significance {
        int first, dc, pattern;
    };

    Flags parse_flags(const TransformBlock& block);
    Position parse_last(const TransformBlock& block);
    int parse_last_prefix(int first_context, const TransformBlock& block);
    Significance significance(const TransformBlock& block, const Flags& flags,
                              const SubBlock& sub) const;
    void parse_significance(const TransformBlock& block, const Flags& flags, SubBlock& sub);
    void parse_levels(const TransformBlock& block, const Flags& flags, SubBlock& sub);
    void parse_remaining(Engine& engine, const TransformBlock& block, const Flags& flags,
                         SubBlock& sub, uint32_t open, uint32_t greater, uint32_t greater2);
    int remaining_level(Engine& engine, int rice);
    int long_remaining_level(int rice);
    static void update_rice(uint8_t& rice, int value);
    void store(const TransformBlock& block, const Flags& flags, const SubBlock& sub);
    void reconstruct(const TransformBlock& block, const Flags& flags, int16_t* out,
                     ptrdiff_t stride);

    const SliceContext& slice_;
    Cabac& cabac_;
    bool keeps_levels_ = false;
    int greater1_context_ = 1;
    int columns_ = 0, rows_ = 0;  // reach of the coefficients
    alignas(32) std::array<int16_t, 1024> coefficients_{};
};

}  // namespace ovtrain::hevc
