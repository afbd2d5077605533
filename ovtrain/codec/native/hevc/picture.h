// One decoded picture: its motion, its residual, its coding blocks, and what later pictures ask it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "slice_header.h"

namespace ovtrain::hevc {

struct Vector {
    int16_t x = 0, y = 0;

    bool operator==(const Vector& other) const { return x == other.x && y == other.y; }
    bool operator!=(const Vector& other) const { return !(*this == other); }
};

// Motion of a 4x4 block, in quarter pixels; reference -1: the list is unused.
struct Motion {
    std::array<Vector, 2> vector;
    std::array<int8_t, 2> reference = {-1, -1};

    bool uses(int list) const { return reference[size_t(list)] >= 0; }
    bool inter() const { return uses(0) || uses(1); }
    bool operator==(const Motion& other) const {
        return reference[0] == other.reference[0] && reference[1] == other.reference[1] &&
               (!uses(0) || vector[0] == other.vector[0]) &&
               (!uses(1) || vector[1] == other.vector[1]);
    }
};

enum class Mode : uint8_t { intra = 0, inter = 1, skip = 2, none = 3 };

// The coding unit that covers a smallest coding block.
struct CodingBlock {
    Mode mode = Mode::none;
    int8_t qp = 0;         // QpY
    uint8_t log2_size = 0;
    uint8_t depth = 0;     // CtDepth
};

// Whether a picture may be referenced, and how (8.3.2).
enum class Marking : uint8_t { unused, short_term, long_term };

// The reference lists of one slice, as they were when it was decoded.
struct SliceReferences {
    std::array<std::array<int, MAX_REFERENCES>, 2> poc{};
    std::array<std::array<bool, MAX_REFERENCES>, 2> long_term{};
    WeightTable weights;
    bool weighted = false;
};

// What callers ask to be made beside motion.
struct Wanted {
    bool residual = true;
    bool detail = false;  // intra modes and transform sizes, for those who check the decoder
};

struct Picture {
    std::shared_ptr<const ActiveSets> sets;
    int poc = 0;
    uint64_t sequence = 0;  // number of the coded video sequence
    int64_t tag = -1;       // of the access unit, the caller's
    Marking marking = Marking::unused;
    bool waits_for_output = false;
    bool ok = true;         // every slice ended where it should, no block and no reference is missing
    bool generated = false; // in the place of a lost reference (8.3.3)
    SliceType type = SliceType::i;  // P or B as soon as one slice is

    int cells_across = 0, cells_down = 0;    // 4x4 blocks of the coded size
    int blocks_across = 0, blocks_down = 0;  // smallest coding blocks
    std::vector<Motion> motion;              // (cells_down, cells_across)
    std::vector<CodingBlock> blocks;         // (blocks_down, blocks_across)
    std::vector<int16_t> residual;           // (height, width) of the coded size, or empty
    std::vector<uint32_t> ctb_bits;          // by raster address
    std::vector<int> slice_address;          // SliceAddrRs by raster address; -1: not decoded
    std::vector<uint16_t> slice_index;       // into ``slices``, by raster address
    std::vector<SliceReferences> slices;
    std::vector<uint8_t> intra_mode;         // (cells_down, cells_across) IntraPredModeY
    std::vector<uint8_t> transform_size;     // (cells_down, cells_across) log2; where wanted

    // Make it an empty picture of these sets; memory of an earlier use is kept.
    void reset(std::shared_ptr<const ActiveSets> active, const Wanted& wanted);

    // About how much memory it has
    size_t bytes() const;

    Motion& motion_at(int x, int y) { return motion[cell(x, y)]; }
    const Motion& motion_at(int x, int y) const { return motion[cell(x, y)]; }
    size_t slice_index_at(int x, int y) const {
        const int shift = sets->sps->log2_ctb;
        const int address = (y >> shift) * sets->sps->ctbs_across() + (x >> shift);
        return slice_index[size_t(address)];
    }
    const SliceReferences& slice_at(int x, int y) const { return slices[slice_index_at(x, y)]; }
    CodingBlock& block_at(int x, int y) {
        const int shift = sets->sps->log2_min_cb;
        return blocks[size_t(y >> shift) * size_t(blocks_across) + size_t(x >> shift)];
    }
    size_t cell(int x, int y) const {
        return size_t(y >> 2) * size_t(cells_across) + size_t(x >> 2);
    }
};

}  // namespace ovtrain::hevc
