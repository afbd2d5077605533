#include "picture.h"

namespace ovtrain::hevc {

void Picture::reset(std::shared_ptr<const ActiveSets> active, const Wanted& wanted) {
    sets = std::move(active);
    const auto& sps = *sets->sps;
    poc = 0;
    tag = -1;
    marking = Marking::unused;
    waits_for_output = false;
    ok = true;
    generated = false;
    type = SliceType::i;
    cells_across = (sps.width + 3) >> 2;
    cells_down = (sps.height + 3) >> 2;
    blocks_across = sps.width >> sps.log2_min_cb;
    blocks_down = sps.height >> sps.log2_min_cb;
    const size_t cells = size_t(cells_across) * size_t(cells_down);
    const auto ctbs = size_t(sps.ctb_count());
    motion.assign(cells, Motion());
    blocks.assign(size_t(blocks_across) * size_t(blocks_down), CodingBlock());
    residual.assign(wanted.residual ? size_t(sps.width) * size_t(sps.height) : 0, 0);
    ctb_bits.assign(ctbs, 0);
    slice_address.assign(ctbs, -1);
    slice_index.assign(ctbs, 0);
    slices.clear();
    intra_mode.assign(cells, 1);
    transform_size.assign(wanted.detail ? cells : 0, 0);
}

size_t Picture::bytes() const {
    const auto held = [](const auto& values) { return values.capacity() * sizeof(values[0]); };
    return sizeof(Picture) + held(motion) + held(blocks) + held(residual) + held(ctb_bits) +
           held(slice_address) + held(slice_index) + held(slices) + held(intra_mode) +
           held(transform_size);
}

}  // namespace ovtrain::hevc
