// What every part of slice decoding looks at: the active sets, the picture, the slice.
#pragma once

#include "picture.h"
#include "references.h"

namespace ovtrain::hevc {

struct SliceContext {
    const ActiveSets& sets;
    const SequenceParameterSet& sps;
    const PictureParameterSet& pps;
    Picture& picture;
    const SliceHeader& header;
    const ReferenceLists& lists;

    SliceContext(const ActiveSets& active, Picture& current, const SliceHeader& slice,
                 const ReferenceLists& references)
        : sets(active),
          sps(*active.sps),
          pps(*active.pps),
          picture(current),
          header(slice),
          lists(references) {}

    int ctb_address(int x, int y) const {
        return (y >> sps.log2_ctb) * sps.ctbs_across() + (x >> sps.log2_ctb);
    }

    // 6.4.1: whether the block at (xn, yn) was decoded before the one at (x, y), in the same slice
    // and the same tile
    bool available(int x, int y, int xn, int yn) const {
        if (xn < 0 || yn < 0 || xn >= sps.width || yn >= sps.height) return false;
        const int here = ctb_address(x, y), there = ctb_address(xn, yn);
        if (here == there) return order(xn, yn) <= order(x, y);
        return picture.slice_address[size_t(there)] == header.slice_address &&
               sets.tile_of[size_t(there)] == sets.tile_of[size_t(here)] &&
               sets.raster_to_tile[size_t(there)] < sets.raster_to_tile[size_t(here)];
    }

private:
    // Place of a smallest transform block within its CTB, in z-scan
    unsigned order(int x, int y) const {
        const int mask = (1 << sps.log2_ctb) - 1;
        return interleave(unsigned(x & mask) >> sps.log2_min_tb) |
               interleave(unsigned(y & mask) >> sps.log2_min_tb) << 1;
    }

    static unsigned interleave(unsigned v) {  // of 4 bits
        v = (v | v << 2) & 0x33;
        return (v | v << 1) & 0x55;
    }
};

}  // namespace ovtrain::hevc
