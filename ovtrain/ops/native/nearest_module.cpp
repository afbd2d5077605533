// Exact nearest centers on a CPU; the reference is in ovtrain/ops/nearest_torch.py. Here arrays are
// checked for shape and type and the GIL is released.

#include "nearest.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace {

using Array = nb::ndarray<nb::ndim<2>, nb::device::cpu, nb::c_contig>;
template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
template <typename T>
using Column = nb::ndarray<T, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

[[noreturn]] void refuse(const char* what) { throw std::invalid_argument(what); }

void check_machine() {
    if (!nearest_runs_here()) refuse("this processor has no bfloat16 products");
}

bool is(const Array& array, nb::dlpack::dtype_code code, int bits) {
    const auto type = array.dtype();
    return type.lanes == 1 && type.bits == bits && type.code == uint8_t(code);
}

Points points_of(const Array& array) {
    const bool half = is(array, nb::dlpack::dtype_code::Float, 16);
    if (!half && !is(array, nb::dlpack::dtype_code::Float, 32))
        refuse("points must be float16 or float32");
    return {array.data(), half, int64_t(array.shape(1))};
}

nb::tuple pack(Matrix<const float> centers, Column<const float> mean, Matrix<int32_t> panels,
               Column<float> bias, int threads) {
    check_machine();
    const Centers c{int64_t(centers.shape(0)), int64_t(centers.shape(1)), centers.data(),
                    mean.data(), nullptr, nullptr, 0, 0};
    if (int64_t(mean.size()) != c.width || int64_t(bias.size()) != panel_columns(c.count) ||
        int64_t(panels.size()) != panel_words(c.count, c.width))
        refuse("pack_centers: shapes do not fit");
    uint32_t* const words = reinterpret_cast<uint32_t*>(panels.data());
    const int64_t number = panel_columns(c.count) / panel_columns(1);
    double longest = 0, off = 0;
    {
        nb::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(max : longest, off)
        for (int64_t i = 0; i < number; ++i) pack_panel(c, i, words, bias.data(), longest, off);
    }
    return nb::make_tuple(longest, off);
}

int64_t nearest(Matrix<const float> centers, Column<const float> mean, Matrix<const int32_t> panels,
                Column<const float> bias, double longest, double off, Array points,
                Matrix<int32_t> ids, Matrix<float> squared, int threads) {
    check_machine();
    const Centers c{int64_t(centers.shape(0)),
                    int64_t(centers.shape(1)),
                    centers.data(),
                    mean.data(),
                    reinterpret_cast<const uint32_t*>(panels.data()),
                    bias.data(),
                    longest,
                    off};
    const Points from = points_of(points);
    const int64_t count = int64_t(points.shape(0)), top = int64_t(ids.shape(1));
    if (from.width != c.width || int64_t(mean.size()) != c.width ||
        int64_t(bias.size()) != panel_columns(c.count) ||
        int64_t(panels.size()) != panel_words(c.count, c.width) || top < 1 || top > c.count ||
        int64_t(ids.shape(0)) != count || squared.shape(0) != ids.shape(0) ||
        squared.shape(1) != ids.shape(1) || threads < 1)
        refuse("nearest: shapes do not fit");
    nb::gil_scoped_release release;
    return search(c, from, count, top, ids.data(), squared.data(), threads);
}

// Threads own columns, and where these are few, centers too.
void add_rows(Matrix<int64_t> sums, Column<int64_t> counts, Array points, Column<const int64_t> ids,
              double scale, int threads) {
    check_machine();
    const Points from = points_of(points);
    const int64_t clusters = int64_t(sums.shape(0)), width = int64_t(sums.shape(1));
    const int64_t count = int64_t(points.shape(0));
    if (from.width != width || int64_t(counts.size()) != clusters || int64_t(ids.size()) != count)
        refuse("add_rows: shapes do not fit");
    int64_t *const to = sums.data(), *const number = counts.data();
    const int64_t* const owner = ids.data();
    constexpr int64_t COLUMNS = 256;
    const int64_t parts = std::clamp<int64_t>(width / COLUMNS, 1, threads);
    const int64_t groups = threads / parts, step = (width + parts - 1) / parts;
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads)
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t first = part * step, last = std::min(first + step, width);
            for (int64_t i = 0; i < count; ++i) {
                const int64_t id = owner[i];
                if (id < 0 || id >= clusters || id % groups != group) continue;
                add_fixed(from, i, first, last, scale, to + id * width);
                if (part == 0) ++number[id];  // the others must not even write what they read
            }
        }
}

}  // namespace

void bind_nearest(nb::module_& m) {
    const auto array = nb::arg().noconvert();
    const auto value = nb::arg();
    m.def("nearest_runs_here", &nearest_runs_here);
    m.def("panel_columns", &panel_columns, value);
    m.def("pack_centers", &pack, array, array, array, array, value);
    m.def("nearest", &nearest, array, array, array, array, value, value, array, array, array,
          value);
    m.def("add_rows", &add_rows, array, array, array, array, value, value);
}
