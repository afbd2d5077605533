#include "parameter_sets.h"

#include <algorithm>

#include "scans.h"

namespace ovtrain::hevc {

namespace {

constexpr uint32_t MAX_SIDE = 16888;             // sqrt(8 * MAX_LUMA_SAMPLES)
constexpr int PROFILE_BITS = 88;

// Table 7-6, in up-right diagonal order
constexpr uint8_t DEFAULT_INTRA[64] = {
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 16, 17, 16, 17, 18, 17, 18, 18, 17, 18, 21,
    19, 20, 21, 20, 19, 21, 24, 22, 22, 24, 24, 22, 22, 24, 25, 25, 27, 30, 27, 25, 25, 29,
    31, 35, 35, 31, 29, 36, 41, 44, 41, 36, 47, 54, 54, 47, 65, 70, 65, 88, 88, 115};
constexpr uint8_t DEFAULT_INTER[64] = {
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 17, 17, 18, 18, 18, 18, 18, 18, 20,
    20, 20, 20, 20, 20, 20, 24, 24, 24, 24, 24, 24, 24, 24, 25, 25, 25, 25, 25, 25, 25, 28,
    28, 28, 28, 28, 28, 33, 33, 33, 33, 33, 41, 41, 41, 41, 54, 54, 54, 71, 71, 91};

struct ScalingList {
    std::array<uint8_t, 64> values;
    int dc = 16;
};
using ScalingLists = std::array<std::array<ScalingList, 6>, 4>;  // by size, by matrix

ScalingList default_list(int size, int matrix) {
    ScalingList list;
    if (size == 0)
        list.values.fill(16);
    else
        std::copy_n(matrix < 3 ? DEFAULT_INTRA : DEFAULT_INTER, 64, list.values.begin());
    return list;
}

ScalingLists default_lists() {
    ScalingLists lists;
    for (int size = 0; size < 4; ++size)
        for (int matrix = 0; matrix < 6; ++matrix)
            lists[size_t(size)][size_t(matrix)] = default_list(size, matrix);
    return lists;
}

ScalingList parse_list(BitReader& bits, int size) {
    ScalingList list;
    int next = 8;
    if (size > 1) list.dc = next = bits.se(-7, 247) + 8;
    const int count = std::min(64, 1 << (4 + (size << 1)));
    for (int i = 0; i < count; ++i) {
        next = (next + bits.se(-128, 127) + 256) & 255;
        list.values[size_t(i)] = uint8_t(next);
    }
    return list;
}

// 7.3.4
ScalingLists parse_lists(BitReader& bits) {
    ScalingLists lists = default_lists();
    for (int size = 0; size < 4; ++size) {
        const int step = size == 3 ? 3 : 1;
        for (int matrix = 0; matrix < 6; matrix += step) {
            ScalingList& list = lists[size_t(size)][size_t(matrix)];
            if (bits.flag()) {
                list = parse_list(bits, size);
            } else if (const int delta = int(bits.ue(uint32_t(matrix / step))) * step) {
                list = lists[size_t(size)][size_t(matrix - delta)];
            } else {
                list = default_list(size, matrix);
            }
        }
    }
    return lists;
}

template <size_t N>
void spread(const ScalingList& list, int log2_size, std::array<uint8_t, N>& factors) {
    const int side = 1 << log2_size, coded = std::min(side, 8), ratio = side / coded;
    const Position* scan = diagonal_scan(coded == 4 ? 2 : 3);
    for (int i = 0; i < coded * coded; ++i)
        for (int y = 0; y < ratio; ++y)
            for (int x = 0; x < ratio; ++x)
                factors[size_t((scan[i].y * ratio + y) * side + scan[i].x * ratio + x)] =
                    list.values[size_t(i)];
    if (log2_size > 3) factors[0] = uint8_t(list.dc);
}

// Matrices 0 and 3 are those of luma in intra and in inter coding units.
ScalingFactors factors_of(const ScalingLists& lists) {
    ScalingFactors factors;
    for (size_t inter = 0; inter < 2; ++inter) {
        spread(lists[0][3 * inter], 2, factors.size4[inter]);
        spread(lists[1][3 * inter], 3, factors.size8[inter]);
        spread(lists[2][3 * inter], 4, factors.size16[inter]);
        spread(lists[3][3 * inter], 5, factors.size32[inter]);
    }
    return factors;
}

// 7.3.3
void skip_profile_tier_level(BitReader& bits, int max_sub_layers) {
    bits.skip(PROFILE_BITS + 8);
    bool profile[8] = {}, level[8] = {};
    for (int i = 0; i < max_sub_layers - 1; ++i) {
        profile[i] = bits.flag();
        level[i] = bits.flag();
    }
    if (max_sub_layers > 1) bits.skip(size_t(2 * (9 - max_sub_layers)));
    for (int i = 0; i < max_sub_layers - 1; ++i)
        bits.skip(size_t((profile[i] ? PROFILE_BITS : 0) + (level[i] ? 8 : 0)));
}

// E.2.3
void skip_sub_layer_hrd(BitReader& bits, int cpb_count, bool sub_pictures) {
    for (int i = 0; i < cpb_count; ++i) {
        for (int k = 0; k < (sub_pictures ? 4 : 2); ++k) bits.ue();
        bits.skip(1);
    }
}

// E.2.2, with the common information
void skip_hrd(BitReader& bits, int max_sub_layers) {
    const bool nal = bits.flag(), vcl = bits.flag();
    bool sub_pictures = false;
    if (nal || vcl) {
        sub_pictures = bits.flag();
        if (sub_pictures) bits.skip(19);
        bits.skip(8);
        if (sub_pictures) bits.skip(4);
        bits.skip(15);
    }
    for (int i = 0; i < max_sub_layers; ++i) {
        const bool fixed_general = bits.flag();
        const bool fixed_in_sequence = fixed_general || bits.flag();
        bool low_delay = false;
        int cpb_count = 1;
        if (fixed_in_sequence)
            bits.ue();
        else
            low_delay = bits.flag();
        if (!low_delay) cpb_count = int(bits.ue(31)) + 1;
        if (nal) skip_sub_layer_hrd(bits, cpb_count, sub_pictures);
        if (vcl) skip_sub_layer_hrd(bits, cpb_count, sub_pictures);
    }
}

// E.2.1
void skip_vui(BitReader& bits, int max_sub_layers) {
    if (bits.flag() && bits.u(8) == 255) bits.skip(32);  // aspect ratio
    if (bits.flag()) bits.skip(1);                       // overscan
    if (bits.flag()) {                                   // video signal type
        bits.skip(4);
        if (bits.flag()) bits.skip(24);
    }
    if (bits.flag()) {  // chroma location
        bits.ue();
        bits.ue();
    }
    bits.skip(3);
    if (bits.flag())  // default display window: a wish of the sender, not part of decoding
        for (int i = 0; i < 4; ++i) bits.ue();
    if (bits.flag()) {  // timing
        bits.skip(64);
        if (bits.flag()) bits.ue();
        if (bits.flag()) skip_hrd(bits, max_sub_layers);
    }
    if (bits.flag()) {  // bitstream restriction
        bits.skip(3);
        for (int i = 0; i < 5; ++i) bits.ue();
    }
}

void parse_conformance_window(BitReader& bits, SequenceParameterSet& sps) {
    const int x = 1 << sps.log2_chroma_width(), y = 1 << sps.log2_chroma_height();
    sps.crop_left = int(bits.ue(MAX_SIDE)) * x;
    sps.crop_right = int(bits.ue(MAX_SIDE)) * x;
    sps.crop_top = int(bits.ue(MAX_SIDE)) * y;
    sps.crop_bottom = int(bits.ue(MAX_SIDE)) * y;
    require(sps.crop_left + sps.crop_right < sps.width, "the conformance window is empty");
    require(sps.crop_top + sps.crop_bottom < sps.height, "the conformance window is empty");
}

void parse_format(BitReader& bits, SequenceParameterSet& sps) {
    sps.chroma_format = int(bits.ue(3));
    if (sps.chroma_format == 3 && bits.flag())
        throw Unsupported("separate colour planes (separate_colour_plane_flag)");
    sps.width = int(bits.ue(MAX_SIDE));
    sps.height = int(bits.ue(MAX_SIDE));
    require(sps.width > 0 && sps.height > 0, "the picture has no size");
    if (uint32_t(sps.width) * uint32_t(sps.height) > MAX_LUMA_SAMPLES)
        throw Unsupported("pictures above 35,651,584 luma samples (level 6.2)");
    if (bits.flag()) parse_conformance_window(bits, sps);
    sps.bit_depth = int(bits.ue(8)) + 8;
    sps.bit_depth_chroma = int(bits.ue(8)) + 8;
    if (std::max(sps.bit_depth, sps.bit_depth_chroma) > 12)
        throw Unsupported("more than 12 bits per sample");
    sps.log2_max_poc_lsb = int(bits.ue(12)) + 4;
}

void parse_buffering(BitReader& bits, SequenceParameterSet& sps, int max_sub_layers) {
    const int first = bits.flag() ? 0 : max_sub_layers - 1;
    for (int i = first; i < max_sub_layers; ++i) {
        sps.max_dec_pic_buffering = int(bits.ue(MAX_REFERENCES - 1)) + 1;
        sps.max_num_reorder = int(bits.ue(uint32_t(sps.max_dec_pic_buffering - 1)));
        bits.ue();
    }
}

void parse_block_sizes(BitReader& bits, SequenceParameterSet& sps) {
    sps.log2_min_cb = int(bits.ue(3)) + 3;
    sps.log2_ctb = sps.log2_min_cb + int(bits.ue(3));
    require(sps.log2_ctb >= 4 && sps.log2_ctb <= 6, "coding tree blocks of 16, 32 or 64 only");
    const int side = 1 << sps.log2_min_cb;
    require(sps.width % side == 0 && sps.height % side == 0,
            "the picture size is no multiple of the smallest coding block");
    sps.log2_min_tb = int(bits.ue(3)) + 2;
    sps.log2_max_tb = sps.log2_min_tb + int(bits.ue(3));
    require(sps.log2_min_tb < sps.log2_min_cb, "transform blocks as large as coding blocks");
    require(sps.log2_max_tb <= std::min(sps.log2_ctb, 5), "transform blocks above 32");
    const uint32_t depth = uint32_t(sps.log2_ctb - sps.log2_min_tb);
    sps.max_transform_depth_inter = int(bits.ue(depth));
    sps.max_transform_depth_intra = int(bits.ue(depth));
}

void parse_pcm(BitReader& bits, SequenceParameterSet& sps) {
    sps.pcm_bits_luma = int(bits.u(4)) + 1;
    sps.pcm_bits_chroma = int(bits.u(4)) + 1;
    sps.log2_min_pcm = int(bits.ue(2)) + 3;
    sps.log2_max_pcm = sps.log2_min_pcm + int(bits.ue(2));
    require(sps.log2_max_pcm <= std::min(sps.log2_ctb, 5), "PCM blocks above 32");
    bits.skip(1);  // pcm_loop_filter_disabled_flag
}

void parse_references(BitReader& bits, SequenceParameterSet& sps) {
    const int sets = int(bits.ue(64));
    for (int i = 0; i < sets; ++i)
        sps.short_term_sets.push_back(parse_short_term_set(bits, sps.short_term_sets, false));
    sps.long_term_present = bits.flag();
    if (!sps.long_term_present) return;
    const int count = int(bits.ue(32));
    for (int i = 0; i < count; ++i) {
        sps.long_term_poc_lsb.push_back(int(bits.u(sps.log2_max_poc_lsb)));
        sps.long_term_used.push_back(bits.flag());
    }
}

// 7.3.2.2.2
void parse_sps_range_extension(BitReader& bits, SequenceParameterSet& sps) {
    sps.transform_skip_rotation = bits.flag();
    sps.transform_skip_context = bits.flag();
    sps.implicit_rdpcm = bits.flag();
    sps.explicit_rdpcm = bits.flag();
    if (bits.flag()) throw Unsupported("extended precision (extended_precision_processing_flag)");
    bits.skip(1);  // intra_smoothing_disabled_flag: of intra samples only
    sps.high_precision_offsets = bits.flag();
    sps.persistent_rice = bits.flag();
    if (bits.flag()) throw Unsupported("bypass alignment (cabac_bypass_alignment_enabled_flag)");
}

void parse_sps_extensions(BitReader& bits, SequenceParameterSet& sps) {
    const bool range = bits.flag(), multilayer = bits.flag(), three_d = bits.flag();
    const bool screen = bits.flag();
    bits.skip(4);
    if (range) parse_sps_range_extension(bits, sps);
    if (multilayer) bits.skip(1);  // inter_view_mv_vert_constraint_flag
    if (three_d) throw Unsupported("the 3D extension");
    if (screen) throw Unsupported("screen content coding (palette, intra block copy, ACT)");
}

void parse_tiles(BitReader& bits, PictureParameterSet& pps) {
    pps.tile_columns = int(bits.ue(MAX_SIDE / 16)) + 1;
    pps.tile_rows = int(bits.ue(MAX_SIDE / 16)) + 1;
    pps.uniform_tiles = bits.flag();
    if (!pps.uniform_tiles) {
        for (int i = 1; i < pps.tile_columns; ++i)
            pps.column_widths.push_back(int(bits.ue(MAX_SIDE)) + 1);
        for (int i = 1; i < pps.tile_rows; ++i)
            pps.row_heights.push_back(int(bits.ue(MAX_SIDE)) + 1);
    }
    bits.skip(1);  // loop_filter_across_tiles_enabled_flag
}

void parse_deblocking(BitReader& bits, PictureParameterSet& pps) {
    pps.deblocking_override = bits.flag();
    pps.deblocking_disabled = bits.flag();
    if (pps.deblocking_disabled) return;
    bits.se();
    bits.se();
}

// 7.3.2.3.2
void parse_pps_range_extension(BitReader& bits, PictureParameterSet& pps) {
    if (pps.transform_skip) pps.log2_max_transform_skip = int(bits.ue(3)) + 2;
    pps.cross_component = bits.flag();
    pps.chroma_qp_offset_lists = bits.flag();
    if (pps.chroma_qp_offset_lists) {
        pps.diff_cu_chroma_qp_offset_depth = int(bits.ue(3));
        pps.chroma_qp_offset_list_length = int(bits.ue(5)) + 1;
        for (int i = 0; i < 2 * pps.chroma_qp_offset_list_length; ++i) bits.se();
    }
    bits.ue();  // log2_sao_offset_scale_luma
    bits.ue();
}

void parse_pps_extensions(BitReader& bits, PictureParameterSet& pps) {
    const bool range = bits.flag(), multilayer = bits.flag(), three_d = bits.flag();
    const bool screen = bits.flag();
    bits.skip(4);
    if (range) parse_pps_range_extension(bits, pps);
    if (multilayer) throw Unsupported("the multilayer extension of a picture parameter set");
    if (three_d) throw Unsupported("the 3D extension");
    if (screen) throw Unsupported("screen content coding (palette, intra block copy, ACT)");
}

std::vector<int> tile_borders(int ctbs, int tiles, bool uniform, const std::vector<int>& sizes) {
    std::vector<int> borders = {0};
    for (int i = 0; i < tiles; ++i) {
        if (uniform)
            borders.push_back((i + 1) * ctbs / tiles);
        else
            borders.push_back(i + 1 < tiles ? borders.back() + sizes[size_t(i)] : ctbs);
        require(borders[size_t(i) + 1] > borders[size_t(i)], "tiles do not fit the picture");
    }
    return borders;
}

// Entries of an inter predicted set, 7.4.8 (7-61), (7-62)
ShortTermSet predict_set(const ShortTermSet& from, int delta, const bool* used, const bool* kept) {
    ShortTermSet set;
    auto add = [&](bool past, int delta_poc, int j) {
        if ((past ? delta_poc >= 0 : delta_poc <= 0) || !kept[j]) return;
        int& count = past ? set.negative_count : set.positive_count;
        require(count < MAX_REFERENCES, "a reference picture set is too long");
        (past ? set.negative : set.positive)[size_t(count++)] = {delta_poc, used[j]};
    };
    const int n = from.negative_count, p = from.positive_count;
    for (int i = p - 1; i >= 0; --i) add(true, from.positive[size_t(i)].delta_poc + delta, n + i);
    add(true, delta, n + p);
    for (int i = 0; i < n; ++i) add(true, from.negative[size_t(i)].delta_poc + delta, i);
    for (int i = n - 1; i >= 0; --i) add(false, from.negative[size_t(i)].delta_poc + delta, i);
    add(false, delta, n + p);
    for (int i = 0; i < p; ++i) add(false, from.positive[size_t(i)].delta_poc + delta, n + i);
    return set;
}

}  // namespace

const uint8_t* ScalingFactors::of(int log2_size, bool inter) const {
    const size_t matrix = inter ? 1 : 0;
    switch (log2_size) {
        case 2: return size4[matrix].data();
        case 3: return size8[matrix].data();
        case 4: return size16[matrix].data();
        default: return size32[matrix].data();
    }
}

ShortTermSet parse_short_term_set(BitReader& bits, const std::vector<ShortTermSet>& earlier,
                                  bool in_slice) {
    const int index = int(earlier.size());
    ShortTermSet set;
    if (index > 0 && bits.flag()) {
        const int back = in_slice ? int(bits.ue(uint32_t(index - 1))) + 1 : 1;
        const bool negative = bits.flag();
        const int size = int(bits.ue(0x7FFF)) + 1;
        const ShortTermSet& from = earlier[size_t(index - back)];
        bool used[2 * MAX_REFERENCES + 1], kept[2 * MAX_REFERENCES + 1];
        for (int j = 0; j <= from.count(); ++j) {
            used[j] = bits.flag();
            kept[j] = used[j] || bits.flag();
        }
        return predict_set(from, negative ? -size : size, used, kept);
    }
    set.negative_count = int(bits.ue(MAX_REFERENCES));
    set.positive_count = int(bits.ue(uint32_t(MAX_REFERENCES - set.negative_count)));
    for (int past = 1; past >= 0; --past) {
        auto& entries = past ? set.negative : set.positive;
        int poc = 0;
        for (int i = 0; i < (past ? set.negative_count : set.positive_count); ++i) {
            const int step = int(bits.ue(0x7FFF)) + 1;
            poc += past ? -step : step;
            entries[size_t(i)] = {poc, bits.flag()};
        }
    }
    return set;
}

SequenceParameterSet parse_sps(BitReader bits) {
    SequenceParameterSet sps;
    bits.skip(4);
    const int max_sub_layers = int(bits.u(3)) + 1;
    require(max_sub_layers <= 7, "more than 7 temporal layers");
    bits.skip(1);
    skip_profile_tier_level(bits, max_sub_layers);
    sps.id = int(bits.ue(15));
    parse_format(bits, sps);
    parse_buffering(bits, sps, max_sub_layers);
    parse_block_sizes(bits, sps);
    sps.scaling_list_enabled = bits.flag();
    if (sps.scaling_list_enabled)
        sps.scaling = factors_of(bits.flag() ? parse_lists(bits) : default_lists());
    sps.amp_enabled = bits.flag();
    sps.sao_enabled = bits.flag();
    sps.pcm_enabled = bits.flag();
    if (sps.pcm_enabled) parse_pcm(bits, sps);
    parse_references(bits, sps);
    sps.temporal_mvp = bits.flag();
    sps.strong_intra_smoothing = bits.flag();
    if (bits.flag()) skip_vui(bits, max_sub_layers);
    if (bits.flag()) parse_sps_extensions(bits, sps);
    return sps;
}

PictureParameterSet parse_pps(BitReader bits) {
    PictureParameterSet pps;
    pps.id = int(bits.ue(63));
    pps.sps_id = int(bits.ue(15));
    pps.dependent_slices = bits.flag();
    pps.output_flag_present = bits.flag();
    pps.extra_slice_header_bits = int(bits.u(3));
    pps.sign_data_hiding = bits.flag();
    pps.cabac_init_present = bits.flag();
    for (int& count : pps.default_references) count = int(bits.ue(MAX_REFERENCES - 2)) + 1;
    pps.init_qp = bits.se(-62, 25) + 26;
    pps.constrained_intra_pred = bits.flag();
    pps.transform_skip = bits.flag();
    pps.cu_qp_delta = bits.flag();
    if (pps.cu_qp_delta) pps.diff_cu_qp_delta_depth = int(bits.ue(3));
    bits.se(-12, 12);
    bits.se(-12, 12);
    pps.slice_chroma_qp_offsets = bits.flag();
    pps.weighted_pred = bits.flag();
    pps.weighted_bipred = bits.flag();
    pps.transquant_bypass = bits.flag();
    pps.tiles = bits.flag();
    pps.entropy_sync = bits.flag();
    if (pps.tiles) parse_tiles(bits, pps);
    pps.loop_filter_across_slices = bits.flag();
    if (bits.flag()) parse_deblocking(bits, pps);
    pps.has_scaling_lists = bits.flag();
    if (pps.has_scaling_lists) pps.scaling = factors_of(parse_lists(bits));
    pps.lists_modification = bits.flag();
    pps.log2_parallel_merge = int(bits.ue(4)) + 2;
    pps.slice_header_extension = bits.flag();
    if (bits.flag()) parse_pps_extensions(bits, pps);
    return pps;
}

ActiveSets::ActiveSets(std::shared_ptr<const SequenceParameterSet> sequence,
                       std::shared_ptr<const PictureParameterSet> picture)
    : sps(std::move(sequence)), pps(std::move(picture)) {
    const int across = sps->ctbs_across(), down = sps->ctbs_down();
    require(pps->diff_cu_qp_delta_depth <= sps->log2_ctb - sps->log2_min_cb,
            "quantization groups below the smallest coding block");
    require(pps->log2_parallel_merge <= sps->log2_ctb, "merge regions above the coding tree block");
    const auto columns =
        tile_borders(across, pps->tile_columns, pps->uniform_tiles, pps->column_widths);
    const auto rows = tile_borders(down, pps->tile_rows, pps->uniform_tiles, pps->row_heights);
    const size_t count = size_t(sps->ctb_count());
    raster_to_tile.resize(count);
    tile_to_raster.reserve(count);
    tile_of.resize(count);
    tile_left.resize(count);
    tile_starts.assign(count, false);
    int tile = 0;
    for (size_t r = 0; r + 1 < rows.size(); ++r)
        for (size_t c = 0; c + 1 < columns.size(); ++c, ++tile) {
            tile_starts[tile_to_raster.size()] = true;
            for (int y = rows[r]; y < rows[r + 1]; ++y)
                for (int x = columns[c]; x < columns[c + 1]; ++x) {
                    const size_t address = size_t(y * across + x);
                    raster_to_tile[address] = int(tile_to_raster.size());
                    tile_to_raster.push_back(int(address));
                    tile_of[address] = tile;
                    tile_left[address] = columns[c];
                }
        }
}

}  // namespace ovtrain::hevc
