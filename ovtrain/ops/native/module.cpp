// Inner loops of the class-sharded head on a CPU; their reference is TorchKernels in
// ovtrain/ops/class_kernels.py. Here arrays are checked for shape and type, the GIL is released, and
// rows are shared among `threads`.

#include "kernels.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace nb = nanobind;

void bind_attention(nb::module_& m);  // attention_module.cpp
void bind_nearest(nb::module_& m);    // nearest_module.cpp

namespace {

using Array = nb::ndarray<nb::device::cpu, nb::c_contig>;
template <typename T>
using Column = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const char* what) { throw std::invalid_argument(what); }

Values values(const Array& array, const char* name) {
    const auto type = array.dtype();
    if (type.lanes == 1 && type.bits == 32 && type.code == uint8_t(nb::dlpack::dtype_code::Float))
        return {array.data(), Kind::float32};
    if (type.lanes == 1 && type.bits == 16 && type.code == uint8_t(nb::dlpack::dtype_code::Bfloat))
        return {array.data(), Kind::bfloat16};
    throw std::invalid_argument(std::string(name) + " must be float32 or bfloat16");
}

struct Matrix {
    Values data;
    int64_t rows, columns;
    Values row(int64_t i) const { return data + i * columns; }
};

Matrix matrix(const Array& array, const char* name) {
    if (array.ndim() != 2) throw std::invalid_argument(std::string(name) + " must have two axes");
    return {values(array, name), int64_t(array.shape(0)), int64_t(array.shape(1))};
}

void check_index(const int64_t* index, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i)
        if (index[i] < 0 || index[i] >= rows) refuse("index lies outside of the rows");
}

// splitmix64 of (id, seed); ovtrain/heads/draw.py says what it is for.
uint64_t mixed(uint64_t id, uint64_t seed) {
    uint64_t x = id * 0x9E3779B97F4A7C15ull + seed;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// Ids of [first, last) whose 53-bit number is below `threshold`, merged with the sorted `always`.
nb::ndarray<nb::numpy, int64_t> draw(int64_t first, int64_t last, uint64_t seed, uint64_t threshold,
                                     Column<const int64_t> always) {
    auto* found = new std::vector<int64_t>;
    nb::capsule owner(found, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
    {
        nb::gil_scoped_release release;
        const int64_t* next = always.data();
        const int64_t* end = next + always.size();
        found->reserve(always.size() + size_t((last - first) * 1.05 * (threshold * 0x1p-53)) + 64);
        for (int64_t id = first; id < last; ++id) {
            const bool asked = next != end && *next == id;
            next += asked;
            if (asked || (mixed(uint64_t(id), seed) >> 11) < threshold) found->push_back(id);
        }
    }
    return nb::ndarray<nb::numpy, int64_t>(found->data(), {found->size()}, owner);
}

void unit_rows(Array rows, Column<const int64_t> index, Array out, Column<float> inverse,
               int threads) {
    const Matrix from = matrix(rows, "rows"), to = matrix(out, "out");
    const int64_t count = int64_t(index.size());
    if (from.columns != to.columns || to.rows < count || int64_t(inverse.size()) != count)
        refuse("unit_rows: shapes do not fit");
    nb::gil_scoped_release release;
    check_index(index.data(), count, from.rows);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(from.columns);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < to.rows; ++i) {
            if (i < count) {
                load(from.row(index.data()[i]), from.columns, row.data());
                const float squares = dot(row.data(), row.data(), from.columns);
                const bool finite = std::isfinite(squares);
                const float scale = 1.0f / std::max(std::sqrt(squares), 1e-12f);
                inverse.data()[i] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
                if (finite) multiply(row.data(), scale, from.columns);
                else std::fill(row.begin(), row.end(), 0.0f);
            } else {
                std::fill(row.begin(), row.end(), 0.0f);
            }
            store(row.data(), from.columns, to.row(i));
        }
    }
}

void pull(Array rows, Column<const int64_t> index, Column<const float> weight,
          Column<const int64_t> offsets, Array out, int threads) {
    const Matrix from = matrix(rows, "rows"), to = matrix(out, "out");
    const int64_t count = int64_t(index.size());
    const int64_t* const edge = offsets.data();
    if (from.columns != to.columns || to.data.kind != Kind::float32 ||
        int64_t(weight.size()) != count || int64_t(offsets.size()) != to.rows + 1 ||
        !std::is_sorted(edge, edge + to.rows + 1) || edge[0] != 0 || edge[to.rows] != count)
        refuse("pull: shapes or offsets do not fit");
    nb::gil_scoped_release release;
    check_index(index.data(), count, from.rows);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(from.columns);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < to.rows; ++b)
            for (int64_t p = edge[b]; p < edge[b + 1]; ++p) {
                load(from.row(index.data()[p]), from.columns, row.data());
                add(row.data(), weight.data()[p], from.columns,
                    static_cast<float*>(to.row(b).data));
            }
    }
}

void tangent(Array gradient, Array unit, Column<const float> inverse, Column<float> squares,
             int threads) {
    const Matrix g = matrix(gradient, "gradient"), u = matrix(unit, "unit");
    if (g.columns != u.columns || g.rows > u.rows || int64_t(inverse.size()) != g.rows ||
        int64_t(squares.size()) != g.rows)
        refuse("tangent: shapes do not fit");
    nb::gil_scoped_release release;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> a(g.columns), b(g.columns);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < g.rows; ++i) {
            load(g.row(i), g.columns, a.data());
            load(u.row(i), g.columns, b.data());
            remove_along(a.data(), b.data(), inverse.data()[i], g.columns);
            squares.data()[i] = dot(a.data(), a.data(), g.columns);
            store(a.data(), g.columns, g.row(i));
        }
    }
}

void logistic_tile(Array cosines, Column<const float> coefficient, Column<const float> weight,
                   float scale, float bias, Column<float> loss, int threads) {
    const Matrix c = matrix(cosines, "cosines");
    if (int64_t(coefficient.size()) != c.rows || int64_t(loss.size()) != c.rows ||
        int64_t(weight.size()) != c.columns)
        refuse("logistic_tile: shapes do not fit");
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < c.rows; ++b)
        loss.data()[b] += logistic(c.row(b), weight.data(), c.columns, coefficient.data()[b], scale,
                                   bias);
}

void exponential_statistics(Array cosines, Column<const float> weight, float scale, float ceiling,
                            Column<float> peak, Column<float> total, int threads) {
    const Matrix c = matrix(cosines, "cosines");
    if (int64_t(peak.size()) != c.rows || int64_t(total.size()) != c.rows ||
        int64_t(weight.size()) != c.columns)
        refuse("exponential_statistics: shapes do not fit");
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < c.rows; ++b)
        exponential_sum(c.row(b), weight.data(), c.columns, scale, ceiling, peak.data()[b],
                        total.data()[b]);
}

void exponential_tile(Array cosines, Column<const float> coefficient, Column<const float> peak,
                      Column<const float> weight, float scale, float ceiling, Array out,
                      int threads) {
    const Matrix c = matrix(cosines, "cosines"), to = matrix(out, "out");
    if (int64_t(coefficient.size()) != c.rows || int64_t(peak.size()) != c.rows ||
        int64_t(weight.size()) != c.columns || to.rows != c.rows || to.columns != c.columns)
        refuse("exponential_tile: shapes do not fit");
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < c.rows; ++b)
        exponential(c.row(b), weight.data(), c.columns, coefficient.data()[b] * scale,
                    peak.data()[b], scale, ceiling, to.row(b));
}

using Moments = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void update_rows(Array rows, std::optional<Array> first, Moments second,
                 Column<const int64_t> index, Array gradient, Column<const float> decay,
                 Column<const float> correction1, Column<const float> correction2,
                 Column<const float> clip, float lr, float beta1, float keep2, float take2,
                 float eps, int64_t first_row, uint32_t key, int threads) {
    const Matrix w = matrix(rows, "rows"), g = matrix(gradient, "gradient");
    const int64_t count = int64_t(index.size());
    Values moment{nullptr, Kind::float32};
    if (first) {
        const Matrix m = matrix(*first, "first");
        if (m.rows != w.rows || m.columns != w.columns) refuse("update_rows: first does not fit");
        moment = m.data;
    }
    const bool per_row = second.ndim() == 1;
    if (clip.size() != 1 || g.columns != w.columns || g.rows < count || int64_t(decay.size()) != count ||
        int64_t(correction1.size()) != count || int64_t(correction2.size()) != count ||
        int64_t(second.shape(0)) != w.rows ||
        (!per_row && int64_t(second.shape(1)) != w.columns))
        refuse("update_rows: shapes do not fit");
    float* const held = second.data();
    nb::gil_scoped_release release;
    check_index(index.data(), count, w.rows);
    if (std::isnan(*clip.data())) return;  // the step is refused
    const Step step{*clip.data(), lr, beta1, keep2, take2, eps, key};
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(w.columns);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = index.data()[i];
            const RowStep own{decay.data()[i], correction1.data()[i], correction2.data()[i],
                              uint64_t(first_row + row)};
            update(w.row(row), moment.data ? moment + row * w.columns : moment,
                   held + row * (per_row ? 1 : w.columns), per_row, g.row(i), w.columns, step, own,
                   scratch);
        }
    }
}

}  // namespace

// Arrays are taken as they are or refused: what is written to a converted copy would be lost.
NB_MODULE(_native, m) {
    const auto array = nb::arg().noconvert();
    const auto value = nb::arg();
    bind_attention(m);
    bind_nearest(m);
    m.def("draw", &draw, value, value, value, value, array);
    m.def("unit_rows", &unit_rows, array, array, array, array, value);
    m.def("pull", &pull, array, array, array, array, array, value);
    m.def("tangent", &tangent, array, array, array, array, value);
    m.def("logistic", &logistic_tile, array, array, array, value, value, array, value);
    m.def("statistics", &exponential_statistics, array, array, value, value, array, array, value);
    m.def("exponential", &exponential_tile, array, array, array, array, value, value, array, value);
    m.def("update", &update_rows, array, nb::arg().noconvert().none(), array, array, array, array,
          array, array, array, value, value, value, value, value, value, value, value);
}
