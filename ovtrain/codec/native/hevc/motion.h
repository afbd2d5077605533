// Derivation of motion vectors (ITU-T H.265, 8.5.3.2): merge, AMVP, temporal prediction.
#pragma once

#include "slice_context.h"

namespace ovtrain::hevc {

enum class PartMode : uint8_t {
    whole,        // 2Nx2N
    two_rows,     // 2NxN
    two_columns,  // Nx2N
    four,         // NxN
    rows_up,      // 2NxnU
    rows_down,    // 2NxnD
    columns_left, // nLx2N
    columns_right // nRx2N
};

// A prediction block and the coding block around it, in luma samples.
struct PredictionBlock {
    int x_cb, y_cb, cb_size;
    int x, y, width, height;
    PartMode mode;
    int part;  // partIdx
};

class MotionPredictor {
public:
    explicit MotionPredictor(const SliceContext& slice);

    // 8.5.3.2.2
    Motion merge(const PredictionBlock& block, int merge_index) const;

    // 8.5.3.2.6: the predictor that ``flag`` chooses
    Vector predict(const PredictionBlock& block, int list, int reference, bool flag) const;

private:
    struct Candidates;

    const Motion* neighbour(const PredictionBlock& block, int xn, int yn) const;
    void add_spatial(const PredictionBlock& block, Candidates& found) const;
    void add_temporal(const PredictionBlock& block, Candidates& found) const;
    void add_combined(Candidates& found) const;
    void add_zero(Candidates& found) const;
    bool temporal(const PredictionBlock& block, int list, int reference, Vector& out) const;
    bool collocated(int x, int y, int list, int reference, Vector& out) const;
    bool unscaled_from(const Motion* motion, int list, int poc, Vector& out) const;
    bool scaled_from(const Motion* motion, int list, int reference, Vector& out) const;

    const SliceContext& slice_;
    const SliceReferences& references_;
    const Picture* collocated_picture_ = nullptr;
    bool no_backward_ = true;  // NoBackwardPredFlag
};

}  // namespace ovtrain::hevc
