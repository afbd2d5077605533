// Slice segment data (ITU-T H.265, 7.3.8): coding tree units down to transform units, with the
// derivations that their parsing needs (8.4.2, 8.4.3, 8.6.1).
#pragma once

#include "cabac.h"
#include "motion.h"
#include "residual.h"

namespace ovtrain::hevc {

// What one slice segment of a picture leaves to the next.
struct SegmentCarry {
    ContextState at_end;       // for dependent segments
    ContextState above_right;  // after the second CTB of the row above (9.3.2.4)
    bool has_above_right = false;
    int last_qp = 0;
};

class SliceDecoder {
public:
    SliceDecoder(const SliceContext& slice, const Wanted& wanted, SegmentCarry& carry);

    // Decode the segment data. Throws Damaged where they break off or do not end as they should.
    void decode(const uint8_t* data, size_t bytes);

private:
    struct CodingUnit {
        int x = 0, y = 0, log2_size = 0;
        PartMode mode = PartMode::whole;
        bool inter = false;
        bool lossless = false;  // cu_transquant_bypass_flag
        int max_depth = 0;      // MaxTrafoDepth
        bool intra_split = false;
        bool inter_split = false;
        uint8_t luma_modes[4] = {1, 1, 1, 1};
        uint8_t chroma_modes[4] = {1, 1, 1, 1};    // IntraPredModeC
        bool chroma_derived[4] = {false, false, false, false};  // intra_chroma_pred_mode 4
    };
    struct TransformNode {
        int x, y, log2_size, depth, index;
        uint8_t parent_cb, parent_cr;  // cbf_cb, cbf_cr; bit 1: of the second block of 4:2:2
    };

    // Slice level
    void start_ctb(int address, bool first_in_segment);
    void end_substream();
    bool first_in_row(int address) const;
    void coding_tree_unit(int address);
    void sao(int address);
    void sao_offsets(int component);

    // Coding units
    void coding_quadtree(int x, int y, int log2_size, int depth);
    bool split_flag(int x, int y, int depth);
    void coding_unit(int x, int y, int log2_size, int depth);
    bool skip_flag(int x, int y);
    PartMode part_mode(const CodingUnit& cu);
    bool pcm_samples(const CodingUnit& cu);
    void intra_modes(CodingUnit& cu);
    int luma_mode(int x, int y, bool most_probable, int code);
    int candidate_mode(int x, int y, int xn, int yn, bool above) const;
    void chroma_modes(CodingUnit& cu);
    void finish_unit(const CodingUnit& cu, Mode mode, int depth);

    // Prediction units
    bool prediction_units(const CodingUnit& cu, bool skip, int depth);
    bool prediction_unit(const PredictionBlock& block, bool skip, int depth);
    Motion explicit_motion(const PredictionBlock& block, int depth);
    int merge_index();
    int reference_index(int count);
    Vector vector_difference();
    int difference_suffix();
    void fill_motion(const PredictionBlock& block, const Motion& motion);

    // Transform tree
    void transform_tree(const CodingUnit& cu, const TransformNode& node);
    uint8_t chroma_cbf(const TransformNode& node, uint8_t parent, bool split);
    void transform_unit(const CodingUnit& cu, const TransformNode& node, bool luma, uint8_t cb,
                        uint8_t cr);
    void luma_residual(const CodingUnit& cu, const TransformNode& node);
    void chroma_residuals(const CodingUnit& cu, const TransformNode& node, bool luma, uint8_t cb,
                          uint8_t cr);
    void cross_component(int component);
    void qp_delta();
    void chroma_qp_offset();
    Scan scan_of(const CodingUnit& cu, int log2_size, int component, int mode) const;

    // Quantization (8.6.1)
    void start_quantization_group(int x, int y);
    int neighbour_qp(int x, int y, int xn, int yn) const;
    void set_qp();

    const SliceContext& slice_;
    const Wanted wanted_;
    SegmentCarry& carry_;
    Cabac cabac_;
    MotionPredictor motion_;
    ResidualDecoder residual_;
    int address_ = 0;  // CtbAddrInRs
    int last_qp_ = 0;  // qPY_PREV
    int predicted_qp_ = 0;
    int qp_ = 0;       // QpY
    int qp_change_ = 0;
    bool qp_delta_coded_ = false;
    bool chroma_offset_coded_ = false;
};

}  // namespace ovtrain::hevc
