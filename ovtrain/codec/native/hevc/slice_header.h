// Slice segment header (ITU-T H.265, 7.3.6) and what its semantics derive (7.4.7).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parameter_sets.h"

namespace ovtrain::hevc {

// nal_unit_type, table 7-1
enum NalType : int {
    RADL_N = 6,
    RASL_N = 8,
    RASL_R = 9,
    RSV_VCL_R15 = 15,
    BLA_W_LP = 16,
    BLA_N_LP = 18,
    IDR_W_RADL = 19,
    IDR_N_LP = 20,
    CRA = 21,
    RSV_IRAP_VCL23 = 23,
    VPS = 32,
    SPS = 33,
    PPS = 34,
    END_OF_SEQUENCE = 36,
    END_OF_BITSTREAM = 37,
};

struct NalHeader {
    int type = 0;
    int layer = 0;
    int temporal_id = 0;

    bool is_slice() const { return type <= RASL_R || is_irap(); }
    bool is_irap() const { return type >= BLA_W_LP && type <= RSV_IRAP_VCL23; }
    bool is_idr() const { return type == IDR_W_RADL || type == IDR_N_LP; }
    bool is_bla() const { return type >= BLA_W_LP && type <= BLA_N_LP; }
    bool is_rasl() const { return type == RASL_N || type == RASL_R; }
    bool is_radl() const { return type == RADL_N || type == RADL_N + 1; }
    // Sub-layer non-reference pictures are the even types below 15.
    bool is_sub_layer_non_reference() const { return type < RSV_VCL_R15 && type % 2 == 0; }
};

enum class SliceType : uint8_t { b = 0, p = 1, i = 2 };

struct LongTermEntry {
    int poc = 0;  // the least significant bits, or what to subtract more (7-52)
    bool used = false;
    bool has_msb = false;
    int msb_cycle = 0;  // DeltaPocMsbCycleLt
};

struct LumaWeight {
    int16_t weight = 64;
    int16_t offset = 0;
};

struct WeightTable {
    int log2_denominator = 6;
    std::array<std::array<LumaWeight, MAX_REFERENCES>, 2> luma;
};

struct SliceHeader {
    NalHeader nal;
    bool first_in_picture = false;
    bool dependent = false;
    int segment_address = 0;  // slice_segment_address, a CTB in raster scan
    int slice_address = 0;    // SliceAddrRs: that of the independent segment it belongs to
    SliceType type = SliceType::i;
    bool output = true;
    int poc_lsb = 0;
    ShortTermSet short_term;
    std::vector<LongTermEntry> long_term;
    bool temporal_mvp = false;
    bool sao_luma = false, sao_chroma = false;
    std::array<int, 2> references = {0, 0};  // entries of list 0 and 1
    std::array<bool, 2> lists_modified = {false, false};
    std::array<std::array<uint8_t, MAX_REFERENCES>, 2> list_entries{};
    bool mvd_l1_zero = false;
    bool cabac_init = false;
    bool collocated_from_l0 = true;
    int collocated_index = 0;
    bool weighted = false;
    WeightTable weights;
    int max_merge_candidates = 5;
    int qp = 26;  // SliceQpY
    bool cu_chroma_qp_offset = false;
    size_t data_offset = 0;  // bytes from the start of the payload to the slice segment data

    int lists() const { return type == SliceType::b ? 2 : type == SliceType::p ? 1 : 0; }
    int used_references() const;  // NumPicTotalCurr (7-55)
};

// The parameter sets that a picture parameter set id stands for; throws where it is unknown.
using FindSets = std::function<std::shared_ptr<const ActiveSets>(int pps_id)>;

struct ParsedHeader {
    SliceHeader header;
    std::shared_ptr<const ActiveSets> sets;
};

// ``bits`` stands behind the NAL unit header. A dependent segment takes over the fields of
// ``previous``, the header before it in the same picture (null where there is none).
ParsedHeader parse_slice_header(BitReader& bits, const NalHeader& nal, const FindSets& find,
                                const SliceHeader* previous);

}  // namespace ovtrain::hevc
