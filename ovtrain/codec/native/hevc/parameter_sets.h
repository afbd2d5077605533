// Sequence and picture parameter sets (ITU-T H.265, 7.3.2.2, 7.3.2.3), with what is derived from
// them: picture geometry, tile scans (6.5), scaling factors of luma (7.3.4, 7.4.5).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bits.h"

namespace ovtrain::hevc {

constexpr uint32_t MAX_LUMA_SAMPLES = 35651584;  // level 6.2, table A.8; bounds what is allocated
constexpr int MAX_REFERENCES = 16;  // entries of a reference picture list, and of a picture buffer

// 7.4.8: a short-term reference picture set; entries by growing distance
struct ShortTermSet {
    struct Entry {
        int delta_poc;
        bool used;
    };
    int negative_count = 0;
    int positive_count = 0;
    std::array<Entry, MAX_REFERENCES> negative{};
    std::array<Entry, MAX_REFERENCES> positive{};

    int count() const { return negative_count + positive_count; }
    const Entry& at(int i) const {
        return i < negative_count ? negative[size_t(i)] : positive[size_t(i - negative_count)];
    }
};

// 7.3.7: the next set of the sequence parameter set that holds ``earlier``, or that of a slice
ShortTermSet parse_short_term_set(BitReader& bits, const std::vector<ShortTermSet>& earlier,
                                  bool in_slice);

// Luma scaling factors m[x][y] (8.6.4.2), by transform size (4 << size) and by intra = 0, inter = 1
struct ScalingFactors {
    std::array<std::array<uint8_t, 16>, 2> size4{};
    std::array<std::array<uint8_t, 64>, 2> size8{};
    std::array<std::array<uint8_t, 256>, 2> size16{};
    std::array<std::array<uint8_t, 1024>, 2> size32{};

    const uint8_t* of(int log2_size, bool inter) const;
};

struct SequenceParameterSet {
    int id = 0;
    int chroma_format = 1;  // ChromaArrayType: 0 = 4:0:0, 1 = 4:2:0, 2 = 4:2:2, 3 = 4:4:4
    int width = 0, height = 0;  // coded luma samples
    int crop_left = 0, crop_right = 0, crop_top = 0, crop_bottom = 0;  // luma samples
    int bit_depth = 8, bit_depth_chroma = 8;
    int log2_max_poc_lsb = 4;
    int max_dec_pic_buffering = 1, max_num_reorder = 0;  // of the highest temporal layer
    int log2_min_cb = 3, log2_ctb = 4;
    int log2_min_tb = 2, log2_max_tb = 5;
    int max_transform_depth_inter = 0, max_transform_depth_intra = 0;
    bool scaling_list_enabled = false;
    ScalingFactors scaling;
    bool amp_enabled = false;
    bool sao_enabled = false;
    bool pcm_enabled = false;
    int pcm_bits_luma = 8, pcm_bits_chroma = 8;
    int log2_min_pcm = 3, log2_max_pcm = 3;
    std::vector<ShortTermSet> short_term_sets;
    bool long_term_present = false;
    std::vector<int> long_term_poc_lsb;
    std::vector<bool> long_term_used;
    bool temporal_mvp = false;
    bool strong_intra_smoothing = false;  // of intra samples: only for those who check the decoder
    // Range extension, 7.3.2.2.2
    bool transform_skip_rotation = false;
    bool transform_skip_context = false;
    bool implicit_rdpcm = false;
    bool explicit_rdpcm = false;
    bool high_precision_offsets = false;
    bool persistent_rice = false;

    int ctb_size() const { return 1 << log2_ctb; }
    int ctbs_across() const { return (width + ctb_size() - 1) >> log2_ctb; }
    int ctbs_down() const { return (height + ctb_size() - 1) >> log2_ctb; }
    int ctb_count() const { return ctbs_across() * ctbs_down(); }
    int log2_chroma_width() const { return chroma_format == 1 || chroma_format == 2 ? 1 : 0; }
    int log2_chroma_height() const { return chroma_format == 1 ? 1 : 0; }
    int qp_offset() const { return 6 * (bit_depth - 8); }  // QpBdOffsetY
};

struct PictureParameterSet {
    int id = 0, sps_id = 0;
    bool dependent_slices = false;
    bool output_flag_present = false;
    int extra_slice_header_bits = 0;
    bool sign_data_hiding = false;
    bool cabac_init_present = false;
    int default_references[2] = {1, 1};
    int init_qp = 26;
    bool constrained_intra_pred = false;
    bool transform_skip = false;
    bool cu_qp_delta = false;
    int diff_cu_qp_delta_depth = 0;
    bool slice_chroma_qp_offsets = false;
    bool weighted_pred = false, weighted_bipred = false;
    bool transquant_bypass = false;
    bool tiles = false;
    bool entropy_sync = false;
    bool uniform_tiles = true;
    int tile_columns = 1, tile_rows = 1;
    std::vector<int> column_widths, row_heights;  // CTBs; all but the last where not uniform
    bool loop_filter_across_slices = false;
    bool deblocking_override = false;
    bool deblocking_disabled = false;
    bool has_scaling_lists = false;
    ScalingFactors scaling;
    bool lists_modification = false;
    int log2_parallel_merge = 2;
    bool slice_header_extension = false;
    // Range extension, 7.3.2.3.2
    int log2_max_transform_skip = 2;
    bool cross_component = false;
    bool chroma_qp_offset_lists = false;
    int diff_cu_chroma_qp_offset_depth = 0;
    int chroma_qp_offset_list_length = 0;
};

// A picture parameter set together with its sequence's, and the scans that both define (6.5.1).
struct ActiveSets {
    std::shared_ptr<const SequenceParameterSet> sps;
    std::shared_ptr<const PictureParameterSet> pps;
    std::vector<int> raster_to_tile;  // CtbAddrRsToTs
    std::vector<int> tile_to_raster;  // CtbAddrTsToRs
    std::vector<int> tile_of;         // TileId, by raster address
    std::vector<int> tile_left;       // first CTB column of the tile, by raster address
    std::vector<bool> tile_starts;    // by tile-scan address

    ActiveSets(std::shared_ptr<const SequenceParameterSet> sequence,
               std::shared_ptr<const PictureParameterSet> picture);
};

// 7.3.2.2. Throws Damaged, Unsupported.
SequenceParameterSet parse_sps(BitReader bits);

// 7.3.2.3. Needs no sequence parameter set, which may come later.
PictureParameterSet parse_pps(BitReader bits);

}  // namespace ovtrain::hevc
