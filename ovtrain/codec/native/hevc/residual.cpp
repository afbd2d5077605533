#include "residual.h"

#include <algorithm>
#include <cstdlib>

#include "transform.h"

namespace ovtrain::hevc {

namespace {

constexpr int HORIZONTAL_MODE = 10, VERTICAL_MODE = 26;
constexpr uint8_t LEVEL_SCALE[6] = {40, 45, 51, 57, 64, 72};
constexpr uint8_t SMALL_BLOCK_CONTEXT[16] = {0, 1, 4, 5, 2, 3, 4, 5, 6, 6, 8, 8, 7, 7, 8, 8};

// sigCtx inside a 4x4 sub-block (9-42), by neighbouring coded sub-blocks (right 1, below 2), then
// by place y * 4 + x
constexpr uint8_t PATTERN_CONTEXT[4][16] = {
    {2, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0},
    {2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0},
    {2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}};

}  // namespace

struct ResidualDecoder::Flags {
    bool transform_skip = false;
    bool explicit_rdpcm = false;
    bool rdpcm_vertical = false;
    bool implicit_rdpcm = false;  // intra, along its own direction
    bool single_context = false;  // transform_skip_context_enabled_flag applies
    bool hides_signs = false;
};

// One 4x4 sub-block while it is parsed.
struct ResidualDecoder::SubBlock {
    int index = 0;                // along the scan of sub-blocks
    Position at{0, 0};            // in sub-blocks
    int neighbours = 0;           // coded sub-blocks: right 1, below 2
    bool coded = false;
    bool infer_dc = false;        // inferSbDcSigCoeffFlag
    const Position* scan = nullptr;
    int start = 15;               // first scan place to parse
    int count = 0;                // significant coefficients
    std::array<uint16_t, 16> place;   // their scan places, descending
    std::array<int, 16> level;
};

void ResidualDecoder::decode(const TransformBlock& block, int16_t* out, ptrdiff_t stride) {
    keeps_levels_ = out != nullptr;
    columns_ = rows_ = 0;
    greater1_context_ = 1;
    const Flags flags = parse_flags(block);
    const Position last = parse_last(block);
    const int sub_log2 = block.log2_size - 2;
    const Position* sub_scan = scan_order(block.scan, sub_log2);
    const Position* scan = scan_order(block.scan, 2);
    const int last_sub = scan_place(block.scan, sub_log2, last.x >> 2, last.y >> 2);
    const int last_place = scan_place(block.scan, 2, last.x & 3, last.y & 3);
    uint8_t coded[9][9] = {};  // a border of zeros on the right and below
    for (int i = last_sub; i >= 0; --i) {
        SubBlock sub;
        sub.index = i;
        sub.at = sub_scan[i];
        sub.scan = scan;
        sub.neighbours = coded[sub.at.y][sub.at.x + 1] | coded[sub.at.y + 1][sub.at.x] << 1;
        sub.coded = true;
        if (i < last_sub && i > 0) {
            const int context = (block.component ? 2 : 0) + (sub.neighbours != 0);
            sub.coded = cabac_.bin(CODED_SUB_BLOCK + context);
            sub.infer_dc = true;
        }
        if (!sub.coded) continue;
        coded[sub.at.y][sub.at.x] = 1;
        if (i == last_sub) {
            sub.place[size_t(sub.count++)] = uint16_t(last_place);
            sub.start = last_place - 1;
        }
        parse_significance(block, flags, sub);
        if (sub.count == 0) continue;
        parse_levels(block, flags, sub);
        if (keeps_levels_) store(block, flags, sub);
    }
    if (keeps_levels_) reconstruct(block, flags, out, stride);
}

ResidualDecoder::Flags ResidualDecoder::parse_flags(const TransformBlock& block) {
    const auto& sps = slice_.sps;
    const auto& pps = slice_.pps;
    const int chroma = block.component ? 1 : 0;
    Flags flags;
    if (pps.transform_skip && !block.lossless && block.log2_size <= pps.log2_max_transform_skip)
        flags.transform_skip = cabac_.bin(TRANSFORM_SKIP + chroma);
    const bool untransformed = flags.transform_skip || block.lossless;
    if (block.inter && sps.explicit_rdpcm && untransformed) {
        flags.explicit_rdpcm = cabac_.bin(EXPLICIT_RDPCM + chroma);
        if (flags.explicit_rdpcm) flags.rdpcm_vertical = cabac_.bin(EXPLICIT_RDPCM_DIR + chroma);
    }
    const bool straight = block.intra_mode == HORIZONTAL_MODE || block.intra_mode == VERTICAL_MODE;
    flags.implicit_rdpcm = !block.inter && sps.implicit_rdpcm && untransformed && straight;
    if (flags.implicit_rdpcm) flags.rdpcm_vertical = block.intra_mode == VERTICAL_MODE;
    flags.single_context = sps.transform_skip_context && untransformed;
    flags.hides_signs = pps.sign_data_hiding && !block.lossless && !flags.implicit_rdpcm &&
                        !flags.explicit_rdpcm;
    return flags;
}

// last_sig_coeff_x_prefix, last_sig_coeff_y_prefix (9.3.4.2.3)
int ResidualDecoder::parse_last_prefix(int first_context, const TransformBlock& block) {
    const int log2 = block.log2_size;
    const int offset = block.component ? 15 : 3 * (log2 - 2) + ((log2 - 1) >> 2);
    const int shift = block.component ? log2 - 2 : (log2 + 1) >> 2;
    const int most = (log2 << 1) - 1;
    int prefix = 0;
    while (prefix < most && cabac_.bin(first_context + offset + (prefix >> shift))) ++prefix;
    return prefix;
}

Position ResidualDecoder::parse_last(const TransformBlock& block) {
    const int prefix_x = parse_last_prefix(LAST_X, block);
    const int prefix_y = parse_last_prefix(LAST_Y, block);
    auto complete = [this](int prefix) {
        if (prefix < 4) return uint8_t(prefix);
        const int bits = (prefix >> 1) - 1;
        return uint8_t((1 << bits) * (2 + (prefix & 1)) + int(cabac_.bypass(bits)));
    };
    const uint8_t x = complete(prefix_x);
    const uint8_t y = complete(prefix_y);
    return block.scan == Scan::vertical ? Position{y, x} : Position{x, y};
}

// sig_coeff_flag (9.3.4.2.5)
void ResidualDecoder::parse_significance(const TransformBlock& block, const Flags& flags,
                                         SubBlock& sub) {
    const bool luma = block.component == 0;
    const int base = SIGNIFICANT + (luma ? 0 : 27);
    const bool first = sub.at.x == 0 && sub.at.y == 0;
    const uint8_t* pattern = PATTERN_CONTEXT[sub.neighbours];
    int offset = 0;
    if (block.log2_size == 2) {
        pattern = SMALL_BLOCK_CONTEXT;
    } else {
        if (luma) offset = (first ? 0 : 3) + (block.log2_size == 3 ? 0 : 21);
        if (luma && block.log2_size == 3) offset += block.scan == Scan::diagonal ? 9 : 15;
        if (!luma) offset = block.log2_size == 3 ? 9 : 12;
    }
    const int single = SIGNIFICANT + (luma ? 42 : 43);
    bool infer_dc = sub.infer_dc;
    for (int n = sub.start; n > 0; --n) {
        const Position p = sub.scan[n];
        const int context =
            flags.single_context ? single : base + offset + pattern[p.y * 4 + p.x];
        if (!cabac_.bin(context)) continue;
        sub.place[size_t(sub.count++)] = uint16_t(n);
        infer_dc = false;
    }
    if (sub.start < 0) return;
    const int dc = flags.single_context ? single
                   : first              ? base
                                        : base + offset + pattern[0];
    if (infer_dc || cabac_.bin(dc)) sub.place[size_t(sub.count++)] = 0;
}

// coeff_abs_level_greater1_flag to coeff_abs_level_remaining, with their signs
void ResidualDecoder::parse_levels(const TransformBlock& block, const Flags& flags, SubBlock& sub) {
    int set = sub.index == 0 || block.component ? 0 : 2;
    if (greater1_context_ == 0) ++set;  // of the sub-block before, 9.3.4.2.6
    const int chroma = block.component ? 1 : 0;
    const int greater1 = GREATER1 + 16 * chroma + 4 * set;
    greater1_context_ = 1;
    const int flagged = std::min(sub.count, 8);
    int first_greater = -1;
    for (int i = 0; i < flagged; ++i) {
        const int flag = cabac_.bin(greater1 + greater1_context_);
        sub.level[size_t(i)] = 1 + flag;
        if (flag) {
            greater1_context_ = 0;
            if (first_greater < 0) first_greater = i;
        } else if (greater1_context_ > 0 && greater1_context_ < 3) {
            ++greater1_context_;
        }
    }
    std::fill(sub.level.begin() + flagged, sub.level.begin() + sub.count, 1);
    if (first_greater >= 0)
        sub.level[size_t(first_greater)] += cabac_.bin(GREATER2 + 4 * chroma + set);
    const bool hidden = flags.hides_signs && sub.place[0] - sub.place[size_t(sub.count - 1)] > 3;
    const int signs = sub.count - hidden;
    const uint32_t negative = cabac_.bypass(signs) << (32 - signs) % 32;
    const int statistic = 2 * (1 - chroma) + (flags.transform_skip || block.lossless ? 1 : 0);
    const bool adapts = slice_.sps.persistent_rice;
    int rice = adapts ? cabac_.contexts.rice[size_t(statistic)] / 4 : 0;
    bool first_remaining = true;
    int sum = 0;
    for (int i = 0; i < sub.count; ++i) {
        int& level = sub.level[size_t(i)];
        const int limit = i >= 8 ? 1 : i == first_greater ? 3 : 2;
        if (level == limit) {
            const int remaining = parse_remaining(rice);
            level += remaining;
            if (level > 3 << rice) rice = adapts ? rice + 1 : std::min(rice + 1, 4);
            if (adapts && first_remaining) update_rice(statistic, remaining);
            first_remaining = false;
        }
        sum += level;
        if (i < signs && negative >> (31 - i) & 1) level = -level;
    }
    if (hidden && sum & 1) {
        int& level = sub.level[size_t(sub.count - 1)];
        level = -level;
    }
}

// 9.3.3.11
int ResidualDecoder::parse_remaining(int rice) {
    int prefix = 0;
    while (prefix < 32 && cabac_.bypass()) ++prefix;
    require(prefix < 32 && rice <= 20, "a coefficient is out of range");
    if (prefix <= 3) return (prefix << rice) + int(cabac_.bypass(rice));
    const int bits = prefix - 3 + rice;
    require(bits <= 20, "a coefficient is out of range");
    return (((1 << (prefix - 3)) + 3 - 1) << rice) + int(cabac_.bypass(bits));
}

// StatCoeff, 9.3.3.11
void ResidualDecoder::update_rice(int statistic, int value) {
    uint8_t& rice = cabac_.contexts.rice[size_t(statistic)];
    if (value >= 3 << (rice / 4) && rice < 80)
        ++rice;
    else if (2 * value < 1 << (rice / 4) && rice > 0)
        --rice;
}

// 8.6.4.2: levels to scaled coefficients; lossless blocks keep their levels
void ResidualDecoder::store(const TransformBlock& block, const Flags& flags, const SubBlock& sub) {
    const int log2 = block.log2_size;
    const bool flat = !slice_.sps.scaling_list_enabled || (flags.transform_skip && log2 > 2);
    const auto& lists = slice_.pps.has_scaling_lists ? slice_.pps.scaling : slice_.sps.scaling;
    const uint8_t* factors = flat ? nullptr : lists.of(log2, block.inter);
    const int scale = LEVEL_SCALE[block.qp % 6] << (block.qp / 6);
    const int shift = slice_.sps.bit_depth + log2 - 5;
    const int64_t round = int64_t(1) << (shift - 1);
    for (int i = 0; i < sub.count; ++i) {
        const Position p = sub.scan[sub.place[size_t(i)]];
        const int x = sub.at.x * 4 + p.x, y = sub.at.y * 4 + p.y, at = (y << log2) + x;
        int64_t value = std::clamp(sub.level[size_t(i)], -32768, 32767);
        if (!block.lossless) value = (value * scale * (factors ? factors[at] : 16) + round) >> shift;
        coefficients_[size_t(at)] = int16_t(std::clamp<int64_t>(value, -32768, 32767));
        columns_ = std::max(columns_, x + 1);
        rows_ = std::max(rows_, y + 1);
    }
}

void ResidualDecoder::reconstruct(const TransformBlock& block, const Flags& flags, int16_t* out,
                                  ptrdiff_t stride) {
    const int size = 1 << block.log2_size;
    const Coefficients found{coefficients_.data(), block.log2_size, columns_, rows_};
    if (!block.lossless && !flags.transform_skip) {
        const bool dst = !block.inter && block.log2_size == 2;
        inverse_transform(found, dst, slice_.sps.bit_depth, out, stride);
    } else {
        if (block.lossless)
            copy_levels(found, out, stride);
        else
            skip_transform(found, slice_.sps.bit_depth, out, stride);
        if (slice_.sps.transform_skip_rotation && size == 4 && !block.inter)
            rotate(out, size, stride);
        if (flags.explicit_rdpcm || flags.implicit_rdpcm)
            accumulate(out, size, stride, flags.rdpcm_vertical);
    }
    for (int y = 0; y < rows_; ++y)
        std::fill_n(coefficients_.begin() + (y << block.log2_size), columns_, int16_t(0));
}

}  // namespace ovtrain::hevc
