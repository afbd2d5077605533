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
constexpr int SMALL_BLOCK = 4, SINGLE_CONTEXT = 5;  // patterns behind those four

// The same along each scan: [scan][pattern][scan place]
struct SignificanceContexts {
    uint8_t at[3][6][16];

    SignificanceContexts() : at{} {
        for (int scan = 0; scan < 3; ++scan)
            for (int place = 0; place < 16; ++place) {
                const Position p = scan_order(Scan(scan), 2)[place];
                for (int pattern = 0; pattern < 4; ++pattern)
                    at[scan][pattern][place] = PATTERN_CONTEXT[pattern][p.y * 4 + p.x];
                at[scan][SMALL_BLOCK][place] = SMALL_BLOCK_CONTEXT[p.y * 4 + p.x];
            }
    }
};

// greater1Ctx after a flag, by the one before it (9.3.4.2.6); 0 as soon as one flag was set
constexpr uint8_t NEXT_GREATER1[4][2] = {{0, 0}, {2, 0}, {3, 0}, {3, 0}};

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
    std::array<int, 16> level;        // theirs; set only where the residual is wanted
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
    uint16_t coded[9] = {};  // bits of each row of sub-blocks; none behind the last row
    for (int i = last_sub; i >= 0; --i) {
        SubBlock sub;
        sub.index = i;
        sub.at = sub_scan[i];
        sub.scan = scan;
        sub.neighbours =
            (coded[sub.at.y] >> (sub.at.x + 1) & 1) | (coded[sub.at.y + 1] >> sub.at.x & 1) << 1;
        sub.coded = true;
        if (i < last_sub && i > 0) {
            const int context = (block.component ? 2 : 0) + (sub.neighbours != 0);
            sub.coded = cabac_.bin(CODED_SUB_BLOCK + context);
            sub.infer_dc = true;
        }
        if (!sub.coded) continue;
        coded[sub.at.y] = uint16_t(coded[sub.at.y] | 1 << sub.at.x);
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

// First context and pattern of sig_coeff_flag in a sub-block (9.3.4.2.5)
ResidualDecoder::Significance ResidualDecoder::significance(const TransformBlock& block,
                                                            const Flags& flags,
                                                            const SubBlock& sub) const {
    const bool luma = block.component == 0;
    const int base = SIGNIFICANT + (luma ? 0 : 27);
    if (flags.single_context) {
        const int single = SIGNIFICANT + (luma ? 42 : 43);
        return {single, single, SINGLE_CONTEXT};
    }
    if (block.log2_size == 2) return {base, base, SMALL_BLOCK};
    const bool first = sub.at.x == 0 && sub.at.y == 0;
    int offset = 0;
    if (luma) offset = (first ? 0 : 3) + (block.log2_size == 3 ? 0 : 21);
    if (luma && block.log2_size == 3) offset += block.scan == Scan::diagonal ? 9 : 15;
    if (!luma) offset = block.log2_size == 3 ? 9 : 12;
    const int dc = first ? base : base + offset + PATTERN_CONTEXT[sub.neighbours][0];
    return {base + offset, dc, sub.neighbours};
}

// sig_coeff_flag. Half of these bins are as likely one as zero, so nothing branches on them.
void ResidualDecoder::parse_significance(const TransformBlock& block, const Flags& flags,
                                         SubBlock& sub) {
    static const SignificanceContexts CONTEXTS;
    if (sub.start < 0) return;
    const Significance where = significance(block, flags, sub);
    const uint8_t* pattern = CONTEXTS.at[size_t(block.scan)][where.pattern];
    uint16_t* models = cabac_.contexts.models.data();
    Engine engine = cabac_.engine;
    int count = sub.count;
    // Neighbours along the scan mostly share a context: its variable waits in a register.
    int context = where.first + pattern[sub.start];
    uint16_t model = models[context];
    for (int n = sub.start; n > 0; --n) {
        if (context != where.first + pattern[n]) {
            models[context] = model;
            context = where.first + pattern[n];
            model = models[context];
        }
        sub.place[size_t(count)] = uint16_t(n);
        count += engine.even_bin(model);
    }
    models[context] = model;
    if ((sub.infer_dc && count == 0) || engine.bin(models[where.dc])) sub.place[size_t(count++)] = 0;
    sub.count = count;
    cabac_.engine = engine;
}

// coeff_abs_level_greater1_flag to coeff_abs_level_remaining, with their signs
void ResidualDecoder::parse_levels(const TransformBlock& block, const Flags& flags, SubBlock& sub) {
    uint16_t* models = cabac_.contexts.models.data();
    Engine engine = cabac_.engine;
    const int chroma = block.component ? 1 : 0;
    int set = sub.index == 0 || chroma ? 0 : 2;
    if (greater1_context_ == 0) ++set;  // of the sub-block before, 9.3.4.2.6
    uint16_t* greater1 = models + GREATER1 + 16 * chroma + 4 * set;
    const int flagged = std::min(sub.count, 8);
    uint32_t greater = 0;  // bit i: of coefficient i
    int context = 1;
    for (int i = 0; i < flagged; ++i) {
        const int flag = engine.bin(greater1[context]);
        greater |= uint32_t(flag) << i;
        context = NEXT_GREATER1[context][flag];
    }
    greater1_context_ = context;
    // Coefficients whose level goes on behind what the flags say of it
    uint32_t open = greater | (0xFFFFu >> (16 - sub.count) & ~0xFFu);
    const uint32_t first = greater & (0u - greater);
    uint32_t greater2 = 0;
    if (first && engine.bin(models[GREATER2 + 4 * chroma + set]))
        greater2 = first;
    else
        open &= ~first;
    const bool hidden = flags.hides_signs && sub.place[0] - sub.place[size_t(sub.count - 1)] > 3;
    const int signs = sub.count - hidden;
    const uint32_t negative = engine.bypass(signs) << (32 - signs) % 32;
    if (keeps_levels_)
        for (uint32_t i = 0; i < uint32_t(sub.count); ++i)
            sub.level[i] = int(1 + (greater >> i & 1) + (greater2 >> i & 1));
    if (open) parse_remaining(engine, block, flags, sub, open, greater, greater2);
    cabac_.engine = engine;
    if (!keeps_levels_) return;
    int sum = 0;
    for (uint32_t i = 0; i < uint32_t(sub.count); ++i) {
        const int sign = -int(negative << i >> 31);
        sum += sub.level[i];
        sub.level[i] = (sub.level[i] ^ sign) - sign;
    }
    if (hidden && sum & 1) {
        int& level = sub.level[size_t(sub.count - 1)];
        level = -level;
    }
}

// coeff_abs_level_remaining of the ``open`` coefficients
inline void ResidualDecoder::parse_remaining(Engine& engine, const TransformBlock& block,
                                             const Flags& flags, SubBlock& sub, uint32_t open,
                                             uint32_t greater, uint32_t greater2) {
    const int statistic =
        2 * (block.component ? 0 : 1) + (flags.transform_skip || block.lossless ? 1 : 0);
    const bool adapts = slice_.sps.persistent_rice;
    uint8_t& stored = cabac_.contexts.rice[size_t(statistic)];
    int rice = adapts ? stored / 4 : 0;
    bool first = true;
    for (; open; open &= open - 1) {
        const int i = __builtin_ctz(open);
        const int remaining = remaining_level(engine, rice);
        const int level = remaining + int(1 + (greater >> i & 1) + (greater2 >> i & 1));
        if (keeps_levels_) sub.level[size_t(i)] = level;
        if (level > 3 << rice) rice = adapts ? rice + 1 : std::min(rice + 1, 4);
        if (adapts && first) update_rice(stored, remaining);
        first = false;
    }
}

// 9.3.3.11
inline int ResidualDecoder::remaining_level(Engine& engine, int rice) {
    const uint32_t bins = engine.peek();
    const int prefix = __builtin_clz(~(bins << 16));
    const int suffix = prefix <= 3 ? rice : prefix - 3 + rice;
    const int length = prefix + 1 + suffix;
    if (length > 16) {
        cabac_.engine = engine;
        const int level = long_remaining_level(rice);
        engine = cabac_.engine;
        return level;
    }
    const uint32_t code = bins >> (16 - length);
    engine.take(code, length);
    const int base = prefix <= 3 ? prefix : (1 << (prefix - 3)) + 2;
    return (base << rice) + int(code & ((1u << suffix) - 1));
}

// The same in codes of any length
int ResidualDecoder::long_remaining_level(int rice) {
    int prefix = 0;
    while (prefix < 32 && cabac_.bypass()) ++prefix;
    require(prefix < 32 && rice <= 20, "a coefficient is out of range");
    const int suffix = prefix <= 3 ? rice : prefix - 3 + rice;
    require(suffix <= 20, "a coefficient is out of range");
    const int base = prefix <= 3 ? prefix : (1 << (prefix - 3)) + 2;
    const int high = int(cabac_.bypass(suffix / 2)) << (suffix - suffix / 2);
    return (base << rice) + high + int(cabac_.bypass(suffix - suffix / 2));
}

// StatCoeff, 9.3.3.11
void ResidualDecoder::update_rice(uint8_t& rice, int value) {
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
