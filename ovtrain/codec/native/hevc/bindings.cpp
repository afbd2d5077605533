// Python's view of the decoder (ovtrain/codec/hevc.py). Pixels of the display window and their 4x4
// blocks are copied into arrays that the caller gives; the GIL is free while packets are decoded and
// while maps are copied.

#include "../bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "decoder.h"

namespace nb = nanobind;

namespace {

using namespace ovtrain::hevc;

template <typename T, int D>
using Out = nb::ndarray<T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;

// A picture as it is shown: the conformance window, and its grid of 4x4 blocks.
struct Frame {
    PicturePtr picture;

    const SequenceParameterSet& sps() const { return *picture->sets->sps; }
    int height() const { return sps().height - sps().crop_top - sps().crop_bottom; }
    int width() const { return sps().width - sps().crop_left - sps().crop_right; }
    int cells_down() const { return (height() + 3) / 4; }
    int cells_across() const { return (width() + 3) / 4; }

    // Call visit(place in the caller's grid, x, y) for each 4x4 block of the window.
    template <typename Visit>
    void each_cell(Visit visit) const {
        const int left = sps().crop_left, top = sps().crop_top;
        const int down = cells_down(), across = cells_across();
        size_t place = 0;
        for (int i = 0; i < down; ++i)
            for (int j = 0; j < across; ++j, ++place) visit(place, left + 4 * j, top + 4 * i);
    }

    // Call visit(place in the caller's grid, index in the picture's, length, slice) for each row of
    // 4x4 blocks of the window, in runs that one slice decoded.
    template <typename Visit>
    void each_run(Visit visit) const {
        const int left = sps().crop_left, right = left + width(), size = sps().ctb_size();
        size_t place = 0;
        for (int i = 0; i < cells_down(); ++i) {
            const int y = sps().crop_top + 4 * i;
            for (int x = left; x < right;) {
                const int end = std::min(right, (x / size + 1) * size);
                const auto cells = size_t(end - x + 3) / 4;
                visit(place, picture->cell(x, y), cells, picture->slice_index_at(x, y));
                place += cells;
                x += 4 * int(cells);
            }
        }
    }

    template <typename Array>
    void check_grid(const Array& out) const {
        if (int(out.shape(0)) != cells_down() || int(out.shape(1)) != cells_across())
            throw std::invalid_argument("the array has not the shape of the frame's 4x4 blocks");
    }
};

constexpr int64_t LARGE_PICTURE = 512 * 512;  // luma samples

// Frees the GIL while a large frame's maps are copied. A small one takes a few microseconds: to wait
// for the GIL again, behind another thread that decodes, would take longer.
struct FreeGil {
    explicit FreeGil(const Frame& frame) {
        if (int64_t(frame.height()) * frame.width() >= LARGE_PICTURE) release_.emplace();
    }

private:
    std::optional<nb::gil_scoped_release> release_;
};

const char* type_of(const Frame& frame) {
    switch (frame.picture->type) {
        case SliceType::b: return "B";
        case SliceType::p: return "P";
        default: return "I";
    }
}

void copy_motion(const Frame& frame, Out<int16_t, 4> out) {
    frame.check_grid(out);
    if (out.shape(2) != 2 || out.shape(3) != 2)
        throw std::invalid_argument("motion needs an array of shape (h4, w4, 2, 2)");
    int16_t* to = out.data();
    const FreeGil free(frame);
    frame.each_run([&](size_t place, size_t cell, size_t cells, size_t) {
        const Motion* from = &frame.picture->motion[cell];
        static_assert(sizeof(Motion::vector) == 8);
        for (size_t i = 0; i < cells; ++i) std::memcpy(to + 4 * (place + i), &from[i].vector, 8);
    });
}

// Current - reference by list and reference index + 1; index -1, no reference, has 0.
using Distances = std::array<std::array<int16_t, MAX_REFERENCES + 1>, 2>;

Distances distances_of(const Picture& picture, const SliceReferences& slice) {
    Distances found{};
    for (size_t list = 0; list < 2; ++list)
        for (size_t i = 0; i < MAX_REFERENCES; ++i)
            found[list][i + 1] =
                int16_t(std::clamp(picture.poc - slice.poc[list][i], -32767, 32767));
    return found;
}

void copy_reference_delta(const Frame& frame, Out<int16_t, 3> out) {
    frame.check_grid(out);
    if (out.shape(2) != 2)
        throw std::invalid_argument("reference_delta needs an array of shape (h4, w4, 2)");
    int16_t* to = out.data();
    const FreeGil free(frame);
    const Picture& picture = *frame.picture;
    std::vector<Distances> slices;
    for (const SliceReferences& slice : picture.slices)
        slices.push_back(distances_of(picture, slice));
    frame.each_run([&](size_t place, size_t cell, size_t cells, size_t slice) {
        const Motion* from = &picture.motion[cell];
        const Distances& distances = slices[slice];
        for (size_t i = 0; i < cells; ++i, ++place) {
            to[2 * place] = distances[0][size_t(from[i].reference[0] + 1)];
            to[2 * place + 1] = distances[1][size_t(from[i].reference[1] + 1)];
        }
    });
}

void copy_residual(const Frame& frame, Out<int16_t, 2> out) {
    const auto& picture = *frame.picture;
    if (picture.residual.empty()) throw std::invalid_argument("the residual was not asked for");
    if (int(out.shape(0)) != frame.height() || int(out.shape(1)) != frame.width())
        throw std::invalid_argument("the array has not the shape of the frame");
    int16_t* to = out.data();
    const FreeGil free(frame);
    const auto& sps = frame.sps();
    const auto row = size_t(frame.width());
    const int16_t* from =
        picture.residual.data() + size_t(sps.crop_top) * size_t(sps.width) + sps.crop_left;
    for (int y = 0; y < frame.height(); ++y, from += sps.width, to += row)
        std::memcpy(to, from, row * sizeof(int16_t));
}

void copy_blocks(const Frame& frame, Out<uint8_t, 2> mode, Out<int8_t, 2> qp,
                 Out<uint8_t, 2> size) {
    frame.check_grid(mode);
    frame.check_grid(qp);
    frame.check_grid(size);
    uint8_t* modes = mode.data();
    int8_t* qps = qp.data();
    uint8_t* sizes = size.data();
    const FreeGil free(frame);
    frame.each_cell([&](size_t place, int x, int y) {
        const CodingBlock& block = frame.picture->block_at(x, y);
        modes[place] = uint8_t(block.mode);
        qps[place] = block.qp;
        sizes[place] = uint8_t(block.log2_size ? 1 << block.log2_size : 0);
    });
}

// Of the coded picture: CTBs that the window cuts are whole.
void copy_ctb_bits(const Frame& frame, Out<uint32_t, 2> out) {
    if (int(out.shape(0)) != frame.sps().ctbs_down() ||
        int(out.shape(1)) != frame.sps().ctbs_across())
        throw std::invalid_argument("the array has not the shape of the frame's CTBs");
    std::copy(frame.picture->ctb_bits.begin(), frame.picture->ctb_bits.end(), out.data());
}

void copy_detail(const Frame& frame, Out<uint8_t, 2> intra_mode, Out<uint8_t, 2> transform_size) {
    const auto& picture = *frame.picture;
    if (picture.transform_size.empty()) throw std::invalid_argument("the detail was not asked for");
    frame.check_grid(intra_mode);
    frame.check_grid(transform_size);
    frame.each_cell([&](size_t place, int x, int y) {
        const size_t cell = picture.cell(x, y);
        intra_mode.data()[place] = picture.intra_mode[cell];
        transform_size.data()[place] =
            uint8_t(picture.transform_size[cell] ? 1 << picture.transform_size[cell] : 0);
    });
}

// Luma weight of each block and list: (log2 denominator or -1 for default weighting, weight, offset)
void copy_weights(const Frame& frame, Out<int16_t, 4> out) {
    frame.check_grid(out);
    if (out.shape(2) != 2 || out.shape(3) != 3)
        throw std::invalid_argument("weights needs an array of shape (h4, w4, 2, 3)");
    frame.each_cell([&](size_t place, int x, int y) {
        const SliceReferences& slice = frame.picture->slice_at(x, y);
        const Motion& motion = frame.picture->motion_at(x, y);
        for (size_t list = 0; list < 2; ++list) {
            int16_t* to = out.data() + 6 * place + 3 * list;
            to[0] = int16_t(slice.weighted ? slice.weights.log2_denominator : -1);
            const LumaWeight entry = motion.uses(int(list))
                                         ? slice.weights.luma[list][size_t(motion.reference[list])]
                                         : LumaWeight();
            to[1] = entry.weight;
            to[2] = entry.offset;
        }
    });
}

// SliceAddrRs of each CTB; -1: not decoded
void copy_slice_address(const Frame& frame, Out<int32_t, 2> out) {
    const auto& found = frame.picture->slice_address;
    if (out.size() != found.size())
        throw std::invalid_argument("the array has not the shape of the frame's CTBs");
    std::copy(found.begin(), found.end(), out.data());
}

Span span_of(const nb::bytes& data) {
    return {reinterpret_cast<const uint8_t*>(data.c_str()), data.size()};
}

void bind_frame(nb::module_& m) {
    nb::class_<Frame>(m, "HevcFrame")
        .def_prop_ro("height", &Frame::height)
        .def_prop_ro("width", &Frame::width)
        .def_prop_ro("ctbs_down", [](const Frame& f) { return f.sps().ctbs_down(); })
        .def_prop_ro("ctbs_across", [](const Frame& f) { return f.sps().ctbs_across(); })
        .def_prop_ro("ctb_size", [](const Frame& f) { return f.sps().ctb_size(); })
        .def_prop_ro("bit_depth", [](const Frame& f) { return f.sps().bit_depth; })
        .def_prop_ro("poc", [](const Frame& f) { return f.picture->poc; })
        .def_prop_ro("sequence", [](const Frame& f) { return f.picture->sequence; })
        .def_prop_ro("tag", [](const Frame& f) { return f.picture->tag; })
        .def_prop_ro("type", &type_of)
        .def_prop_ro("ok", [](const Frame& f) { return f.picture->ok; })
        .def("motion", &copy_motion, nb::arg("out"))
        .def("reference_delta", &copy_reference_delta, nb::arg("out"))
        .def("residual", &copy_residual, nb::arg("out"))
        .def("blocks", &copy_blocks, nb::arg("mode"), nb::arg("qp"), nb::arg("size"))
        .def("ctb_bits", &copy_ctb_bits, nb::arg("out"))
        .def("detail", &copy_detail, nb::arg("intra_mode"), nb::arg("transform_size"))
        .def("weights", &copy_weights, nb::arg("out"))
        .def("slice_address", &copy_slice_address, nb::arg("out"))
        .def_prop_ro("strong_intra_smoothing",
                     [](const Frame& f) { return f.sps().strong_intra_smoothing; })
        .def_prop_ro("constrained_intra_pred", [](const Frame& f) {
            return f.picture->sets->pps->constrained_intra_pred;
        });
}

void bind_decoder(nb::module_& m) {
    nb::class_<Decoder>(m, "HevcDecoder")
        .def(
            "__init__",
            [](Decoder* self, const nb::bytes& configuration, bool residual, bool detail) {
                new (self) Decoder(Wanted{residual, detail}, span_of(configuration));
            },
            nb::arg("configuration"), nb::arg("residual") = true, nb::arg("detail") = false)
        .def(
            "push",
            [](Decoder& self, const nb::bytes& packet, int64_t tag) {
                const Span span = span_of(packet);
                nb::gil_scoped_release release;
                self.push(span, tag);
            },
            nb::arg("packet"), nb::arg("tag"))
        .def(
            "configure",
            [](Decoder& self, const nb::bytes& configuration) {
                self.configure(span_of(configuration));
            },
            nb::arg("configuration"))
        .def(
            "skim",
            [](Decoder& self, const nb::bytes& packet) -> nb::object {
                const std::optional<Skimmed> found = self.skim(span_of(packet));
                if (!found) return nb::none();
                return nb::make_tuple(found->sequence, found->poc, found->random_access,
                                      found->shown);
            },
            nb::arg("packet"))
        .def("flush", &Decoder::flush, nb::call_guard<nb::gil_scoped_release>())
        .def("pop",
             [](Decoder& self) -> nb::object {
                 PicturePtr picture = self.pop();
                 if (!picture) return nb::none();
                 return nb::cast(Frame{std::move(picture)});
             })
        .def_prop_ro("lost_units", &Decoder::lost_units)
        .def_prop_ro("last_fault", &Decoder::last_fault);
}

}  // namespace

void bind_hevc(nb::module_& m) {
    nb::exception<Unsupported>(m, "Unsupported", PyExc_ValueError);
    bind_frame(m);
    bind_decoder(m);
}
