#include "coding_tree.h"

#include <algorithm>

namespace ovtrain::hevc {

SliceDecoder::SliceDecoder(const SliceContext& slice, const Wanted& wanted, SegmentCarry& carry)
    : slice_(slice), wanted_(wanted), carry_(carry), motion_(slice), residual_(slice, cabac_) {}

// 7.3.8.1
void SliceDecoder::decode(const uint8_t* data, size_t bytes) {
    const auto& sets = slice_.sets;
    cabac_.start(data, bytes);
    int scan = sets.raster_to_tile[size_t(slice_.header.segment_address)];
    bool first = true;
    for (;;) {
        const int address = sets.tile_to_raster[size_t(scan)];
        require(slice_.picture.slice_address[size_t(address)] < 0, "two slices hold the same block");
        start_ctb(address, first);
        first = false;
        const size_t before = cabac_.engine.bits_read();
        coding_tree_unit(address);
        require(!cabac_.engine.overrun(), "slice data end early");
        const bool second_in_row = address % slice_.sps.ctbs_across() ==
                                   sets.tile_left[size_t(address)] + 1;
        if (slice_.pps.entropy_sync && second_in_row) {
            carry_.above_right = cabac_.contexts;
            carry_.has_above_right = true;
        }
        const bool end = cabac_.terminate(Ending::slice_segment);
        slice_.picture.ctb_bits[size_t(address)] = uint32_t(cabac_.engine.bits_read() - before);
        if (end) break;
        require(++scan < slice_.sps.ctb_count(), "slice data go on behind the picture");
        const int next = sets.tile_to_raster[size_t(scan)];
        if (sets.tile_starts[size_t(scan)] || (slice_.pps.entropy_sync && first_in_row(next)))
            end_substream();
    }
    carry_.at_end = cabac_.contexts;
    carry_.last_qp = last_qp_;
    cabac_.engine.check_end();
}

bool SliceDecoder::first_in_row(int address) const {
    return address % slice_.sps.ctbs_across() == slice_.sets.tile_left[size_t(address)];
}

// Contexts and QP predictor at a CTB's start (9.3.1, 9.3.2)
void SliceDecoder::start_ctb(int address, bool first_in_segment) {
    const auto& header = slice_.header;
    const auto& sps = slice_.sps;
    const bool tile = slice_.sets.tile_starts[size_t(slice_.sets.raster_to_tile[size_t(address)])];
    const bool row = slice_.pps.entropy_sync && first_in_row(address);
    address_ = address;
    if (first_in_segment) last_qp_ = header.dependent ? carry_.last_qp : header.qp;
    if (tile || row) last_qp_ = header.qp;
    if (!first_in_segment && !tile && !row) return;
    const int swap = header.cabac_init ? 1 : 0;
    const int init_type = header.type == SliceType::i   ? 0
                          : header.type == SliceType::p ? 1 + swap
                                                        : 2 - swap;
    const int x = address % sps.ctbs_across() << sps.log2_ctb;
    const int y = address / sps.ctbs_across() << sps.log2_ctb;
    if (row && !tile && carry_.has_above_right &&
        slice_.available(x, y, x + sps.ctb_size(), y - sps.ctb_size())) {
        cabac_.contexts = carry_.above_right;
    } else if (first_in_segment && header.dependent && !tile && !row) {
        cabac_.contexts = carry_.at_end;
    } else {
        cabac_.contexts.reset(init_type, header.qp);
    }
}

// end_of_subset_one_bit and byte_alignment(); the next substream starts behind them
void SliceDecoder::end_substream() {
    require(cabac_.terminate(Ending::substream), "a substream does not end where it should");
    cabac_.engine.restart_behind(0);
}

void SliceDecoder::coding_tree_unit(int address) {
    const auto& sps = slice_.sps;
    slice_.picture.slice_address[size_t(address)] = slice_.header.slice_address;
    slice_.picture.slice_index[size_t(address)] = uint16_t(slice_.picture.slices.size() - 1);
    if (slice_.header.sao_luma || slice_.header.sao_chroma) sao(address);
    const int x = address % sps.ctbs_across() << sps.log2_ctb;
    const int y = address / sps.ctbs_across() << sps.log2_ctb;
    coding_quadtree(x, y, sps.log2_ctb, 0);
}

// 7.3.8.3; read over
void SliceDecoder::sao(int address) {
    const int across = slice_.sps.ctbs_across();
    const auto& tile = slice_.sets.tile_of;
    auto mergeable = [&](int other) {
        return slice_.picture.slice_address[size_t(other)] == slice_.header.slice_address &&
               tile[size_t(other)] == tile[size_t(address)];
    };
    if (address % across > 0 && mergeable(address - 1) && cabac_.bin(SAO_MERGE)) return;
    if (address >= across && mergeable(address - across) && cabac_.bin(SAO_MERGE)) return;
    if (slice_.header.sao_luma) sao_offsets(0);
    if (slice_.header.sao_chroma) sao_offsets(1);
}

// The offsets of luma, or of both chroma components, which share their type and class
void SliceDecoder::sao_offsets(int component) {
    if (!cabac_.bin(SAO_TYPE)) return;
    const bool edge = cabac_.bypass();
    const int depth = component ? slice_.sps.bit_depth_chroma : slice_.sps.bit_depth;
    const int most = (1 << (std::min(depth, 10) - 5)) - 1;
    for (int part = 0; part < (component ? 2 : 1); ++part) {
        int nonzero = 0;
        for (int i = 0; i < 4; ++i) {
            int value = 0;
            while (value < most && cabac_.bypass()) ++value;
            nonzero += value != 0;
        }
        if (!edge)
            cabac_.bypass(nonzero + 5);  // signs, band position
        else if (part == 0)
            cabac_.bypass(2);  // class
    }
}

// 7.3.8.4
void SliceDecoder::coding_quadtree(int x, int y, int log2_size, int depth) {
    const auto& sps = slice_.sps;
    const auto& pps = slice_.pps;
    const int size = 1 << log2_size;
    bool split = log2_size > sps.log2_min_cb;
    if (split && x + size <= sps.width && y + size <= sps.height) split = split_flag(x, y, depth);
    if (log2_size >= sps.log2_ctb - pps.diff_cu_qp_delta_depth) start_quantization_group(x, y);
    if (slice_.header.cu_chroma_qp_offset &&
        log2_size >= sps.log2_ctb - pps.diff_cu_chroma_qp_offset_depth)
        chroma_offset_coded_ = false;
    if (!split) return coding_unit(x, y, log2_size, depth);
    const int half = size / 2;
    for (int part = 0; part < 4; ++part) {
        const int px = x + (part & 1) * half, py = y + (part >> 1) * half;
        if (px < sps.width && py < sps.height) coding_quadtree(px, py, log2_size - 1, depth + 1);
    }
}

bool SliceDecoder::split_flag(int x, int y, int depth) {
    int context = 0;
    if (slice_.available(x, y, x - 1, y)) context += slice_.picture.block_at(x - 1, y).depth > depth;
    if (slice_.available(x, y, x, y - 1)) context += slice_.picture.block_at(x, y - 1).depth > depth;
    return cabac_.bin(SPLIT_CU + context);
}

bool SliceDecoder::skip_flag(int x, int y) {
    int context = 0;
    auto& picture = slice_.picture;
    if (slice_.available(x, y, x - 1, y)) context += picture.block_at(x - 1, y).mode == Mode::skip;
    if (slice_.available(x, y, x, y - 1)) context += picture.block_at(x, y - 1).mode == Mode::skip;
    return cabac_.bin(CU_SKIP + context);
}

// 7.3.8.5
void SliceDecoder::coding_unit(int x, int y, int log2_size, int depth) {
    CodingUnit cu;
    cu.x = x;
    cu.y = y;
    cu.log2_size = log2_size;
    if (slice_.pps.transquant_bypass) cu.lossless = cabac_.bin(TRANSQUANT_BYPASS);
    const bool inter_slice = slice_.header.type != SliceType::i;
    if (inter_slice && skip_flag(x, y)) {
        cu.inter = true;
        prediction_units(cu, true, depth);
        return finish_unit(cu, Mode::skip, depth);
    }
    cu.inter = inter_slice && !cabac_.bin(PRED_MODE);
    if (cu.inter || log2_size == slice_.sps.log2_min_cb) cu.mode = part_mode(cu);
    cu.intra_split = !cu.inter && cu.mode == PartMode::four;
    bool root_cbf = true;
    if (cu.inter) {
        const bool merged = prediction_units(cu, false, depth);
        if (!(cu.mode == PartMode::whole && merged)) root_cbf = cabac_.bin(ROOT_CBF);
    } else if (pcm_samples(cu)) {
        root_cbf = false;
    } else {
        intra_modes(cu);
    }
    if (root_cbf) {
        cu.max_depth = cu.inter ? slice_.sps.max_transform_depth_inter
                                : slice_.sps.max_transform_depth_intra + cu.intra_split;
        cu.inter_split = cu.inter && slice_.sps.max_transform_depth_inter == 0 &&
                         cu.mode != PartMode::whole;
        transform_tree(cu, {x, y, log2_size, 0, 0, 1, 1});
    }
    finish_unit(cu, cu.inter ? Mode::inter : Mode::intra, depth);
}

void SliceDecoder::finish_unit(const CodingUnit& cu, Mode mode, int depth) {
    auto& picture = slice_.picture;
    const int side = 1 << (cu.log2_size - slice_.sps.log2_min_cb);
    CodingBlock* row = &picture.block_at(cu.x, cu.y);
    const CodingBlock block{mode, int8_t(qp_), uint8_t(cu.log2_size), uint8_t(depth)};
    for (int i = 0; i < side; ++i, row += picture.blocks_across) std::fill_n(row, side, block);
    last_qp_ = qp_;
}

// 7.4.9.5, table 9-43
PartMode SliceDecoder::part_mode(const CodingUnit& cu) {
    if (cabac_.bin(PART_MODE)) return PartMode::whole;
    if (!cu.inter) return PartMode::four;
    const bool smallest = cu.log2_size == slice_.sps.log2_min_cb;
    const bool rows = cabac_.bin(PART_MODE + 1);
    if (smallest) {
        if (rows) return PartMode::two_rows;
        if (cu.log2_size == 3) return PartMode::two_columns;
        return cabac_.bin(PART_MODE + 2) ? PartMode::two_columns : PartMode::four;
    }
    if (!slice_.sps.amp_enabled || cabac_.bin(PART_MODE + 3))
        return rows ? PartMode::two_rows : PartMode::two_columns;
    const bool far = cabac_.bypass();
    if (rows) return far ? PartMode::rows_down : PartMode::rows_up;
    return far ? PartMode::columns_right : PartMode::columns_left;
}

// pcm_flag and pcm_sample() (7.3.8.7); PCM blocks have no residual
bool SliceDecoder::pcm_samples(const CodingUnit& cu) {
    const auto& sps = slice_.sps;
    if (!sps.pcm_enabled || cu.mode != PartMode::whole || cu.log2_size < sps.log2_min_pcm ||
        cu.log2_size > sps.log2_max_pcm || !cabac_.terminate(Ending::before_pcm))
        return false;
    const size_t luma = size_t(1) << (2 * cu.log2_size);
    size_t chroma = 0;
    if (sps.chroma_format)
        chroma = 2 * luma >> (sps.log2_chroma_width() + sps.log2_chroma_height());
    const size_t bits = luma * size_t(sps.pcm_bits_luma) + chroma * size_t(sps.pcm_bits_chroma);
    cabac_.engine.restart_behind(bits);
    return true;
}

// 7.3.8.5, the intra branch
void SliceDecoder::intra_modes(CodingUnit& cu) {
    const int parts = cu.intra_split ? 4 : 1;
    const int size = (1 << cu.log2_size) >> (cu.intra_split ? 1 : 0);
    bool most_probable[4];
    for (int i = 0; i < parts; ++i) most_probable[i] = cabac_.bin(PREV_INTRA_LUMA);
    for (int i = 0; i < parts; ++i) {
        int code = 0;
        if (!most_probable[i])
            code = int(cabac_.bypass(5));
        else if (cabac_.bypass())
            code = 1 + cabac_.bypass();
        const int x = cu.x + (i & 1) * size, y = cu.y + (i >> 1) * size;
        cu.luma_modes[i] = uint8_t(luma_mode(x, y, most_probable[i], code));
        auto& picture = slice_.picture;
        for (int row = y; row < y + size; row += 4)
            std::fill_n(picture.intra_mode.begin() + ptrdiff_t(picture.cell(x, row)), size / 4,
                        cu.luma_modes[i]);
    }
    if (!cu.intra_split) std::fill_n(cu.luma_modes, 4, cu.luma_modes[0]);
    if (slice_.sps.chroma_format) chroma_modes(cu);
}

// candIntraPredModeX of 8.4.2
int SliceDecoder::candidate_mode(int x, int y, int xn, int yn, bool above) const {
    if (!slice_.available(x, y, xn, yn)) return 1;
    if (above && yn < (y >> slice_.sps.log2_ctb << slice_.sps.log2_ctb)) return 1;
    // Blocks that are not intra, and PCM blocks, hold DC.
    return slice_.picture.intra_mode[slice_.picture.cell(xn, yn)];
}

// 8.4.2
int SliceDecoder::luma_mode(int x, int y, bool most_probable, int code) {
    const int a = candidate_mode(x, y, x - 1, y, false);
    const int b = candidate_mode(x, y, x, y - 1, true);
    int list[3];
    if (a == b && a < 2) {
        list[0] = 0;
        list[1] = 1;
        list[2] = 26;
    } else if (a == b) {
        list[0] = a;
        list[1] = 2 + ((a + 29) % 32);
        list[2] = 2 + ((a - 2 + 1) % 32);
    } else {
        list[0] = a;
        list[1] = b;
        list[2] = a != 0 && b != 0 ? 0 : a != 1 && b != 1 ? 1 : 26;
    }
    if (most_probable) return list[code];
    std::sort(list, list + 3);
    for (const int known : list) code += code >= known;
    return code;
}

// 8.4.3
void SliceDecoder::chroma_modes(CodingUnit& cu) {
    constexpr uint8_t FIXED[4] = {0, 26, 10, 1};
    constexpr uint8_t OF_422[35] = {0,  1,  2,  2,  2,  2,  3,  5,  7,  8,  10, 11,
                                    13, 15, 16, 18, 19, 20, 21, 22, 23, 23, 24, 24,
                                    25, 25, 26, 27, 27, 28, 28, 29, 29, 30, 31};
    const int parts = slice_.sps.chroma_format == 3 && cu.intra_split ? 4 : 1;
    for (int i = 0; i < parts; ++i) {
        const int luma = cu.luma_modes[i];
        const int code = cabac_.bin(INTRA_CHROMA) ? int(cabac_.bypass(2)) : 4;
        int mode = luma;
        if (code < 4) mode = FIXED[code] == luma ? 34 : FIXED[code];
        cu.chroma_derived[i] = code == 4;
        cu.chroma_modes[i] = slice_.sps.chroma_format == 2 ? OF_422[mode] : uint8_t(mode);
    }
    for (int i = parts; i < 4; ++i) {
        cu.chroma_modes[i] = cu.chroma_modes[0];
        cu.chroma_derived[i] = cu.chroma_derived[0];
    }
}

// All prediction units of a coding unit; whether the first one is merged
bool SliceDecoder::prediction_units(const CodingUnit& cu, bool skip, int depth) {
    const int size = 1 << cu.log2_size, half = size / 2, quarter = size / 4;
    PredictionBlock block{cu.x, cu.y, size, cu.x, cu.y, size, size, cu.mode, 0};
    int across = 1, down = 1, first_width = size, first_height = size;
    switch (cu.mode) {
        case PartMode::whole: break;
        case PartMode::two_rows: down = 2, first_height = half; break;
        case PartMode::two_columns: across = 2, first_width = half; break;
        case PartMode::four: across = down = 2, first_width = first_height = half; break;
        case PartMode::rows_up: down = 2, first_height = quarter; break;
        case PartMode::rows_down: down = 2, first_height = size - quarter; break;
        case PartMode::columns_left: across = 2, first_width = quarter; break;
        case PartMode::columns_right: across = 2, first_width = size - quarter; break;
    }
    bool merged = false;
    for (block.part = 0; block.part < across * down; ++block.part) {
        const bool right = block.part % across, bottom = block.part / across;
        block.x = cu.x + (right ? first_width : 0);
        block.y = cu.y + (bottom ? first_height : 0);
        block.width = right ? size - first_width : first_width;
        block.height = bottom ? size - first_height : first_height;
        merged = prediction_unit(block, skip, depth);
    }
    return merged;
}

// 7.3.8.6; whether it is merged
bool SliceDecoder::prediction_unit(const PredictionBlock& block, bool skip, int depth) {
    const bool merged = skip || cabac_.bin(MERGE_FLAG);
    fill_motion(block, merged ? motion_.merge(block, merge_index()) : explicit_motion(block, depth));
    return merged;
}

void SliceDecoder::fill_motion(const PredictionBlock& block, const Motion& motion) {
    auto& picture = slice_.picture;
    Motion* row = &picture.motion_at(block.x, block.y);
    for (int y = 0; y < block.height; y += 4, row += picture.cells_across)
        std::fill_n(row, block.width / 4, motion);
}

int SliceDecoder::merge_index() {
    const int most = slice_.header.max_merge_candidates - 1;
    if (most < 1 || !cabac_.bin(MERGE_INDEX)) return 0;
    int index = 1;
    while (index < most && cabac_.bypass()) ++index;
    return index;
}

Motion SliceDecoder::explicit_motion(const PredictionBlock& block, int depth) {
    const auto& header = slice_.header;
    bool used[2] = {true, false};
    if (header.type == SliceType::b) {  // inter_pred_idc
        if (block.width + block.height != 12 && cabac_.bin(INTER_PRED_IDC + depth))
            used[1] = true;
        else if (cabac_.bin(INTER_PRED_IDC + 4))
            std::swap(used[0], used[1]);
    }
    Motion motion;
    Vector difference[2];
    bool flag[2] = {false, false};
    for (int list = 0; list < 2; ++list) {
        if (!used[list]) continue;
        const auto l = size_t(list);
        motion.reference[l] = int8_t(reference_index(header.references[l]));
        if (!(list == 1 && header.mvd_l1_zero && used[0])) difference[list] = vector_difference();
        flag[list] = cabac_.bin(MVP_FLAG);
    }
    for (int list = 0; list < 2; ++list) {
        if (!used[list]) continue;
        const auto l = size_t(list);
        const Vector base = motion_.predict(block, list, motion.reference[l], flag[list]);
        motion.vector[l] = {int16_t(base.x + difference[list].x),
                            int16_t(base.y + difference[list].y)};
    }
    return motion;
}

int SliceDecoder::reference_index(int count) {
    int index = 0;
    while (index < count - 1 && index < 2 && cabac_.bin(REF_INDEX + index)) ++index;
    if (index == 2)
        while (index < count - 1 && cabac_.bypass()) ++index;
    return index;
}

// 7.3.8.9
Vector SliceDecoder::vector_difference() {
    const bool x = cabac_.bin(MVD_GREATER0), y = cabac_.bin(MVD_GREATER0);
    const bool large_x = x && cabac_.bin(MVD_GREATER1), large_y = y && cabac_.bin(MVD_GREATER1);
    auto component = [this](bool nonzero, bool large) {
        if (!nonzero) return int16_t(0);
        const int size = large ? 2 + difference_suffix() : 1;
        return int16_t(cabac_.bypass() ? -size : size);
    };
    const int16_t dx = component(x, large_x);
    return {dx, component(y, large_y)};
}

// abs_mvd_minus2: first-order Exp-Golomb (9.3.3.5)
int SliceDecoder::difference_suffix() {
    int order = 1, value = 0;
    while (cabac_.bypass()) {
        value += 1 << order;
        require(++order <= 16, "a motion vector difference is out of range");
    }
    return value + int(cabac_.bypass(order));
}

// 7.3.8.8
void SliceDecoder::transform_tree(const CodingUnit& cu, const TransformNode& node) {
    const auto& sps = slice_.sps;
    const int log2 = node.log2_size;
    const bool intra_split = cu.intra_split && node.depth == 0;
    bool split = log2 > sps.log2_max_tb || intra_split || (cu.inter_split && node.depth == 0);
    if (log2 <= sps.log2_max_tb && log2 > sps.log2_min_tb && node.depth < cu.max_depth &&
        !intra_split)
        split = cabac_.bin(SPLIT_TRANSFORM + 5 - log2);
    uint8_t cb = 0, cr = 0;
    if ((log2 > 2 && sps.chroma_format) || sps.chroma_format == 3) {
        cb = chroma_cbf(node, node.parent_cb, split);
        cr = chroma_cbf(node, node.parent_cr, split);
    } else if (log2 == 2 && node.depth > 0) {
        cb = node.parent_cb;
        cr = node.parent_cr;
    }
    if (!split) {
        const bool coded = !cu.inter || node.depth || cb || cr;
        const bool luma = !coded || cabac_.bin(CBF_LUMA + (node.depth == 0));
        return transform_unit(cu, node, luma, cb, cr);
    }
    require(log2 > sps.log2_min_tb, "a transform block below the smallest one");
    const int half = 1 << (log2 - 1);
    for (int i = 0; i < 4; ++i)
        transform_tree(cu, {node.x + (i & 1) * half, node.y + (i >> 1) * half, log2 - 1,
                            node.depth + 1, i, cb, cr});
}

uint8_t SliceDecoder::chroma_cbf(const TransformNode& node, uint8_t parent, bool split) {
    if (!parent) return 0;
    uint8_t flags = uint8_t(cabac_.bin(CBF_CHROMA + node.depth));
    if (slice_.sps.chroma_format == 2 && (!split || node.log2_size == 3))
        flags = uint8_t(flags | cabac_.bin(CBF_CHROMA + node.depth) << 1);
    return flags;
}

// 7.3.8.10
void SliceDecoder::transform_unit(const CodingUnit& cu, const TransformNode& node, bool luma,
                                  uint8_t cb, uint8_t cr) {
    if (wanted_.detail) {
        auto& picture = slice_.picture;
        const int size = 1 << node.log2_size;
        for (int y = node.y; y < node.y + size; y += 4)
            std::fill_n(picture.transform_size.begin() + ptrdiff_t(picture.cell(node.x, y)),
                        size / 4, uint8_t(node.log2_size));
    }
    if (!luma && !cb && !cr) return;
    if (slice_.pps.cu_qp_delta && !qp_delta_coded_) qp_delta();
    if (slice_.header.cu_chroma_qp_offset && (cb || cr) && !cu.lossless && !chroma_offset_coded_)
        chroma_qp_offset();
    if (luma) luma_residual(cu, node);
    if (slice_.sps.chroma_format) chroma_residuals(cu, node, luma, cb, cr);
}

// scanIdx, 7.4.9.11
Scan SliceDecoder::scan_of(const CodingUnit& cu, int log2_size, int component, int mode) const {
    const bool mode_counts =
        log2_size == 2 ||
        (log2_size == 3 && (component == 0 || slice_.sps.chroma_format == 3));
    if (cu.inter || !mode_counts) return Scan::diagonal;
    if (mode >= 6 && mode <= 14) return Scan::vertical;
    return mode >= 22 && mode <= 30 ? Scan::horizontal : Scan::diagonal;
}

void SliceDecoder::luma_residual(const CodingUnit& cu, const TransformNode& node) {
    auto& picture = slice_.picture;
    const int mode = picture.intra_mode[picture.cell(node.x, node.y)];
    const TransformBlock block{node.log2_size,
                               0,
                               cu.inter,
                               cu.lossless,
                               mode,
                               scan_of(cu, node.log2_size, 0, mode),
                               qp_ + slice_.sps.qp_offset()};
    const ptrdiff_t stride = slice_.sps.width;
    int16_t* out = wanted_.residual ? picture.residual.data() + node.y * stride + node.x : nullptr;
    residual_.decode(block, out, stride);
}

void SliceDecoder::chroma_residuals(const CodingUnit& cu, const TransformNode& node, bool luma,
                                    uint8_t cb, uint8_t cr) {
    const bool full = slice_.sps.chroma_format == 3;
    // The chroma of four 4x4 luma blocks is one block, coded with the last of them.
    if (node.log2_size == 2 && !full && node.index != 3) return;
    const int log2 = full ? node.log2_size : std::max(2, node.log2_size - 1);
    const int part = cu.intra_split && full ? ((node.y - cu.y) >> (cu.log2_size - 1)) * 2 +
                                                  ((node.x - cu.x) >> (cu.log2_size - 1))
                                            : 0;
    const bool crosses =
        slice_.pps.cross_component && luma && (cu.inter || cu.chroma_derived[part]);
    for (int component = 1; component < 3; ++component) {
        if (crosses) cross_component(component - 1);
        const uint8_t flags = component == 1 ? cb : cr;
        const int mode = cu.chroma_modes[part];
        const TransformBlock block{log2, component, cu.inter, cu.lossless,
                                   mode, scan_of(cu, log2, component, mode), 0};
        for (int i = 0; i < 2; ++i)
            if (flags >> i & 1) residual_.decode(block, nullptr, 0);
    }
}

// 7.3.8.12; changes chroma only
void SliceDecoder::cross_component(int component) {
    int scale = 0;
    while (scale < 4 && cabac_.bin(RES_SCALE_ABS + 4 * component + scale)) ++scale;
    if (scale) cabac_.bin(RES_SCALE_SIGN + component);
}

// cu_qp_delta_abs, cu_qp_delta_sign_flag (9.3.3.10)
void SliceDecoder::qp_delta() {
    int size = 0;
    while (size < 5 && cabac_.bin(CU_QP_DELTA + (size > 0))) ++size;
    if (size == 5) {
        int order = 0;
        while (cabac_.bypass()) {
            size += 1 << order;
            require(++order <= 7, "a QP difference is out of range");
        }
        size += int(cabac_.bypass(order));
    }
    const bool negative = size && cabac_.bypass();
    const int most = 25 + negative + slice_.sps.qp_offset() / 2;
    require(size <= most, "a QP difference is out of range");
    qp_change_ = negative ? -size : size;
    qp_delta_coded_ = true;
    set_qp();
}

void SliceDecoder::chroma_qp_offset() {
    if (cabac_.bin(CHROMA_QP_OFFSET_FLAG)) {
        const int most = slice_.pps.chroma_qp_offset_list_length - 1;
        for (int i = 0; i < most && cabac_.bin(CHROMA_QP_OFFSET_INDEX); ++i) {
        }
    }
    chroma_offset_coded_ = true;
}

// qPY_A, qPY_B: only blocks of the same CTB count
int SliceDecoder::neighbour_qp(int x, int y, int xn, int yn) const {
    if (!slice_.available(x, y, xn, yn) || slice_.ctb_address(xn, yn) != address_) return last_qp_;
    return slice_.picture.block_at(xn, yn).qp;
}

void SliceDecoder::start_quantization_group(int x, int y) {
    const int left = neighbour_qp(x, y, x - 1, y), above = neighbour_qp(x, y, x, y - 1);
    predicted_qp_ = (left + above + 1) >> 1;
    qp_change_ = 0;
    qp_delta_coded_ = false;
    set_qp();
}

// (8-283)
void SliceDecoder::set_qp() {
    const int offset = slice_.sps.qp_offset();
    qp_ = (predicted_qp_ + qp_change_ + 52 + 2 * offset) % (52 + offset) - offset;
}

}  // namespace ovtrain::hevc
