#include "motion.h"

#include <algorithm>
#include <cstdlib>

namespace ovtrain::hevc {

namespace {

constexpr int MOST_CANDIDATES = 5;

// (8-179) - (8-183)
Vector scale(Vector vector, int td, int tb) {
    if (td == tb) return vector;
    td = std::clamp(td, -128, 127);
    tb = std::clamp(tb, -128, 127);
    if (td == 0) return vector;  // a damaged stream only
    const int tx = (16384 + (std::abs(td) >> 1)) / td;
    const int factor = std::clamp((tb * tx + 32) >> 6, -4096, 4095);
    auto one = [factor](int value) {
        const int product = factor * value;
        const int rounded = (std::abs(product) + 127) >> 8;
        return int16_t(std::clamp(product < 0 ? -rounded : rounded, -32768, 32767));
    };
    return {one(vector.x), one(vector.y)};
}

}  // namespace

struct MotionPredictor::Candidates {
    std::array<Motion, MOST_CANDIDATES + 1> list;
    int count = 0;
    int wanted = 0;  // the list is complete when it holds this many

    bool full() const { return count >= wanted; }
    void add(const Motion& motion) { list[size_t(count++)] = motion; }
};

MotionPredictor::MotionPredictor(const SliceContext& slice)
    : slice_(slice), references_(slice.picture.slices.back()) {
    const auto& header = slice.header;
    if (header.temporal_mvp && header.type != SliceType::i) {
        const size_t list = header.collocated_from_l0 ? 0 : 1;
        collocated_picture_ = slice.lists[list][size_t(header.collocated_index)].get();
    }
    for (int list = 0; list < header.lists(); ++list)
        for (int i = 0; i < header.references[size_t(list)]; ++i)
            no_backward_ &= references_.poc[size_t(list)][size_t(i)] <= slice.picture.poc;
}

// 6.4.2, and the motion there; null where the neighbour is unavailable or intra
const Motion* MotionPredictor::neighbour(const PredictionBlock& block, int xn, int yn) const {
    const bool same_cb = xn >= block.x_cb && yn >= block.y_cb && xn < block.x_cb + block.cb_size &&
                         yn < block.y_cb + block.cb_size;
    if (same_cb) {
        // The third of four parts is not decoded yet when the second one asks for it.
        if (block.mode == PartMode::four && block.part == 1 && yn >= block.y_cb + block.height &&
            xn < block.x_cb + block.width)
            return nullptr;
    } else if (!slice_.available(block.x, block.y, xn, yn)) {
        return nullptr;
    }
    const Motion& motion = slice_.picture.motion_at(xn, yn);
    return motion.inter() ? &motion : nullptr;
}

Motion MotionPredictor::merge(const PredictionBlock& given, int merge_index) const {
    PredictionBlock block = given;
    if (slice_.pps.log2_parallel_merge > 2 && given.cb_size == 8)
        block = {given.x_cb, given.y_cb, 8, given.x_cb, given.y_cb, 8, 8, PartMode::whole, 0};
    Candidates found;
    found.wanted = merge_index + 1;
    add_spatial(block, found);
    if (!found.full()) add_temporal(block, found);
    if (!found.full() && slice_.header.type == SliceType::b) {
        // Combinations are of the whole list, however short the wanted one is.
        found.wanted = slice_.header.max_merge_candidates;
        add_combined(found);
    }
    found.wanted = merge_index + 1;
    if (!found.full()) add_zero(found);
    Motion motion = found.list[size_t(merge_index)];
    if (motion.uses(0) && motion.uses(1) && given.width + given.height == 12) {
        motion.reference[1] = -1;  // 8x4 and 4x8 blocks are never predicted twice
        motion.vector[1] = {};
    }
    return motion;
}

// 8.5.3.2.3
void MotionPredictor::add_spatial(const PredictionBlock& block, Candidates& found) const {
    const int level = slice_.pps.log2_parallel_merge;
    const int right = block.x + block.width, bottom = block.y + block.height;
    auto at = [&](int xn, int yn) -> const Motion* {
        if (block.x >> level == xn >> level && block.y >> level == yn >> level) return nullptr;
        return neighbour(block, xn, yn);
    };
    const bool second = block.part == 1;
    const bool columns = block.mode == PartMode::two_columns ||
                         block.mode == PartMode::columns_left ||
                         block.mode == PartMode::columns_right;
    const bool rows = block.mode == PartMode::two_rows || block.mode == PartMode::rows_up ||
                      block.mode == PartMode::rows_down;
    const Motion* a1 = second && columns ? nullptr : at(block.x - 1, bottom - 1);
    if (a1) found.add(*a1);
    // A B1 that equals A1 is not added, yet B0 and B2 are compared with it.
    const Motion* b1 = second && rows ? nullptr : at(right - 1, block.y - 1);
    if (b1 && !(a1 && *b1 == *a1)) found.add(*b1);
    const Motion* b0 = at(right, block.y - 1);
    if (b0 && !(b1 && *b0 == *b1)) found.add(*b0);
    const Motion* a0 = at(block.x - 1, bottom);
    if (a0 && !(a1 && *a0 == *a1)) found.add(*a0);
    if (found.count == 4) return;
    const Motion* b2 = at(block.x - 1, block.y - 1);
    if (b2 && !(a1 && *b2 == *a1) && !(b1 && *b2 == *b1)) found.add(*b2);
}

void MotionPredictor::add_temporal(const PredictionBlock& block, Candidates& found) const {
    Motion motion;
    for (int list = 0; list < slice_.header.lists(); ++list)
        if (temporal(block, list, 0, motion.vector[size_t(list)]))
            motion.reference[size_t(list)] = 0;
    if (motion.inter()) found.add(motion);
}

// 8.5.3.2.4
void MotionPredictor::add_combined(Candidates& found) const {
    constexpr uint8_t FIRST[12] = {0, 1, 0, 2, 1, 2, 0, 3, 1, 3, 2, 3};
    constexpr uint8_t SECOND[12] = {1, 0, 2, 0, 2, 1, 3, 0, 3, 1, 3, 2};
    const int original = found.count;
    if (original < 2) return;
    for (int i = 0; i < original * (original - 1) && !found.full(); ++i) {
        const Motion& a = found.list[FIRST[i]];
        const Motion& b = found.list[SECOND[i]];
        if (!a.uses(0) || !b.uses(1)) continue;
        const int poc0 = references_.poc[0][size_t(a.reference[0])];
        const int poc1 = references_.poc[1][size_t(b.reference[1])];
        if (poc0 == poc1 && a.vector[0] == b.vector[1]) continue;
        Motion both;
        both.vector = {a.vector[0], b.vector[1]};
        both.reference = {a.reference[0], b.reference[1]};
        found.add(both);
    }
}

// 8.5.3.2.5
void MotionPredictor::add_zero(Candidates& found) const {
    const auto& header = slice_.header;
    const bool both = header.type == SliceType::b;
    const int references =
        both ? std::min(header.references[0], header.references[1]) : header.references[0];
    for (int i = 0; !found.full(); ++i) {
        const auto reference = int8_t(i < references ? i : 0);
        Motion zero;
        zero.reference = {reference, both ? reference : int8_t(-1)};
        found.add(zero);
    }
}

// 8.5.3.2.8
bool MotionPredictor::temporal(const PredictionBlock& block, int list, int reference,
                               Vector& out) const {
    if (!collocated_picture_) return false;
    const int right = block.x + block.width, bottom = block.y + block.height;
    const int shift = slice_.sps.log2_ctb;
    if (block.y >> shift == bottom >> shift && bottom < slice_.sps.height &&
        right < slice_.sps.width && collocated(right, bottom, list, reference, out))
        return true;
    return collocated(block.x + block.width / 2, block.y + block.height / 2, list, reference, out);
}

// 8.5.3.2.9
bool MotionPredictor::collocated(int x, int y, int list, int reference, Vector& out) const {
    x = x >> 4 << 4;
    y = y >> 4 << 4;
    const Picture& picture = *collocated_picture_;
    const Motion& motion = picture.motion_at(x, y);
    if (!motion.inter()) return false;
    int from = list;
    if (!motion.uses(0))
        from = 1;
    else if (!motion.uses(1))
        from = 0;
    else if (!no_backward_)
        from = slice_.header.collocated_from_l0 ? 1 : 0;
    const auto f = size_t(from), l = size_t(list), r = size_t(reference);
    const auto index = size_t(motion.reference[f]);
    const SliceReferences& there = picture.slice_at(x, y);
    const bool long_term = references_.long_term[l][r];
    if (long_term != there.long_term[f][index]) return false;
    const int there_distance = picture.poc - there.poc[f][index];
    const int distance = slice_.picture.poc - references_.poc[l][r];
    out = long_term ? motion.vector[f] : scale(motion.vector[f], there_distance, distance);
    return true;
}

// Steps 1 to 6 of 8.5.3.2.7: a vector to the very picture that is wanted
bool MotionPredictor::unscaled_from(const Motion* motion, int list, int poc, Vector& out) const {
    if (!motion) return false;
    for (const int from : {list, 1 - list}) {
        const auto f = size_t(from);
        if (motion->uses(from) && references_.poc[f][size_t(motion->reference[f])] == poc) {
            out = motion->vector[f];
            return true;
        }
    }
    return false;
}

// Step 7 of 8.5.3.2.7: any vector, scaled by the distance where both references are short-term
bool MotionPredictor::scaled_from(const Motion* motion, int list, int reference,
                                  Vector& out) const {
    if (!motion) return false;
    const auto l = size_t(list), r = size_t(reference);
    const bool long_term = references_.long_term[l][r];
    for (const int from : {list, 1 - list}) {
        if (!motion->uses(from)) continue;
        const auto f = size_t(from), index = size_t(motion->reference[size_t(from)]);
        if (references_.long_term[f][index] != long_term) continue;
        const int td = slice_.picture.poc - references_.poc[f][index];
        const int tb = slice_.picture.poc - references_.poc[l][r];
        out = long_term ? motion->vector[f] : scale(motion->vector[f], td, tb);
        return true;
    }
    return false;
}

// 8.5.3.2.6, 8.5.3.2.7
Vector MotionPredictor::predict(const PredictionBlock& block, int list, int reference,
                                bool flag) const {
    const int right = block.x + block.width, bottom = block.y + block.height;
    const int poc = references_.poc[size_t(list)][size_t(reference)];
    const Motion* left[2] = {neighbour(block, block.x - 1, bottom),
                             neighbour(block, block.x - 1, bottom - 1)};
    const Motion* above[3] = {neighbour(block, right, block.y - 1),
                              neighbour(block, right - 1, block.y - 1),
                              neighbour(block, block.x - 1, block.y - 1)};
    const bool left_exists = left[0] || left[1];  // isScaledFlag
    Vector a, b;
    bool has_a = false, has_b = false;
    for (const Motion* motion : left) has_a = has_a || unscaled_from(motion, list, poc, a);
    for (const Motion* motion : left) has_a = has_a || scaled_from(motion, list, reference, a);
    for (const Motion* motion : above) has_b = has_b || unscaled_from(motion, list, poc, b);
    if (!left_exists) {
        if (has_b) {
            a = b;
            has_a = true;
        }
        has_b = false;
        for (const Motion* motion : above) has_b = has_b || scaled_from(motion, list, reference, b);
    }
    Vector found[3];
    int count = 0;
    if (has_a) found[count++] = a;
    if (has_b && !(has_a && a == b)) found[count++] = b;
    if (count < 2 && temporal(block, list, reference, found[count])) ++count;
    return flag ? (count > 1 ? found[1] : Vector()) : (count > 0 ? found[0] : Vector());
}

}  // namespace ovtrain::hevc
