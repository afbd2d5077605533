// Inner loops of the loader; ovtrain/data/pixels.py says what they compute and holds their
// references. Products and sums keep their order (no contraction, CMakeLists.txt), so that every
// machine gives the same bytes.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(OVTRAIN_ONE_TARGET)
#define CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

namespace nb = nanobind;

namespace {

// Rows may have gaps between them; pixels may not.
using Picture = nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::device::cpu>;
using Places = nb::ndarray<const int64_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Patches = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;
using Found = nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>>;

struct Pixels {
    const uint8_t* data;
    int64_t height, width, pitch;
    const uint8_t* row(int64_t y) const { return data + y * pitch; }
};

Pixels pixels(const Picture& picture) {
    if (picture.stride(2) != 1 || picture.stride(1) != 3 || picture.stride(0) < 0)
        throw std::invalid_argument("a picture's rows must be whole");
    return {picture.data(), int64_t(picture.shape(0)), int64_t(picture.shape(1)), picture.stride(0)};
}

// What each of `count` lines is made of: `taps` weights from line `first[i]` on.
struct Weights {
    int64_t taps = 0;
    std::vector<int64_t> first;
    std::vector<float> values;
};

// A triangle as wide as two lines that are made, or that are there, where those are wider.
Weights weights(double start, double length, int64_t count, int64_t lines) {
    const double step = length / double(count), wide = std::max(step, 1.0);
    Weights found;
    found.taps = std::min(int64_t(std::ceil(2 * wide)) + 1, lines);
    found.first.resize(size_t(count));
    found.values.resize(size_t(count * found.taps));
    for (int64_t i = 0; i < count; ++i) {
        const double centre = start + (double(i) + 0.5) * step;
        const int64_t first =
            std::clamp<int64_t>(int64_t(std::floor(centre - wide)), 0, lines - found.taps);
        float* line = found.values.data() + i * found.taps;
        double sum = 0;
        for (int64_t k = 0; k < found.taps; ++k)
            sum += std::max(0.0, 1 - std::abs(double(first + k) + 0.5 - centre) / wide);
        for (int64_t k = 0; k < found.taps; ++k)
            line[k] = float(
                std::max(0.0, 1 - std::abs(double(first + k) + 0.5 - centre) / wide) / sum);
        found.first[size_t(i)] = first;
    }
    return found;
}

// (taps) rows of bytes -> one row of floats.
CLONES void down(const uint8_t* __restrict from, int64_t pitch, const float* __restrict weight,
                 int64_t taps, int64_t size, float* __restrict row) {
    for (int64_t i = 0; i < size; ++i) row[i] = weight[0] * float(from[i]);
    for (int64_t k = 1; k < taps; ++k)
        for (int64_t i = 0; i < size; ++i) row[i] += weight[k] * float(from[k * pitch + i]);
}

typedef float Four __attribute__((vector_size(16)));

// A row of (width, 3) floats -> one of (count, 3); both have one float beyond.
CLONES void across(const float* row, const Weights& columns, int64_t count, float* to) {
    for (int64_t x = 0; x < count; ++x) {
        const float* from = row + 3 * columns.first[size_t(x)];
        const float* weight = columns.values.data() + x * columns.taps;
        Four sum = {};
#pragma GCC unroll 4
        for (int64_t k = 0; k < columns.taps; ++k) {
            Four pixel;
            std::memcpy(&pixel, from + 3 * k, sizeof pixel);
            sum += weight[k] * pixel;
        }
        std::memcpy(to + 3 * x, &sum, sizeof sum);
    }
}

CLONES void rounded(const float* from, int64_t size, uint8_t* to) {
    for (int64_t i = 0; i < size; ++i)
        to[i] = uint8_t(int32_t(std::min(std::max(from[i] + 0.5f, 0.0f), 255.0f)));
}

Found resample(const Picture& picture, double top, double left, double box_height, double box_width,
               int64_t height, int64_t width) {
    const Pixels from = pixels(picture);
    if (height < 1 || width < 1 || !(box_height > 0) || !(box_width > 0) || top < 0 || left < 0 ||
        top + box_height > double(from.height) + 1e-6 || left + box_width > double(from.width) + 1e-6)
        throw std::invalid_argument("the box lies outside of the picture");
    auto made = std::make_unique<uint8_t[]>(size_t(height * width * 3));
    {
        nb::gil_scoped_release release;
        const Weights rows = weights(top, box_height, height, from.height);
        const Weights columns = weights(left, box_width, width, from.width);
        // Only the columns that are read; `first` rises.
        const int64_t begin = columns.first.front();
        const int64_t end = columns.first.back() + columns.taps;
        std::vector<float> row(size_t(3 * end + 1)), made_row(size_t(3 * width + 1));
        for (int64_t y = 0; y < height; ++y) {
            down(from.row(rows.first[size_t(y)]) + 3 * begin, from.pitch,
                 rows.values.data() + y * rows.taps, rows.taps, 3 * (end - begin),
                 row.data() + 3 * begin);
            across(row.data(), columns, width, made_row.data());
            rounded(made_row.data(), 3 * width, made.get() + y * width * 3);
        }
    }
    uint8_t* raw = made.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
    return Found(raw, {size_t(height), size_t(width), size_t(3)}, owner);
}

// `count` pixels -> three lines of bytes, `plane` apart.
template <bool MIRRORED>
inline void split(const uint8_t* from, int64_t count, int64_t plane, uint8_t* to) {
    for (int64_t x = 0; x < count; ++x) {
        const uint8_t* pixel = from + 3 * (MIRRORED ? count - 1 - x : x);
        for (int c = 0; c < 3; ++c) to[c * plane + x] = pixel[c];
    }
}

void patch_at(const Pixels& from, int64_t top, int64_t left, int64_t side, bool mirrored,
              uint8_t* to) {
    const bool inside = left >= 0 && left + side <= from.width;
    std::vector<uint8_t> edge(inside ? 0 : size_t(3 * side));
    for (int64_t y = 0; y < side; ++y) {
        const uint8_t* row = from.row(std::clamp<int64_t>(top + y, 0, from.height - 1));
        const uint8_t* line = row + 3 * left;
        if (!inside) {
            for (int64_t x = 0; x < side; ++x)
                std::memcpy(&edge[size_t(3 * x)],
                            row + 3 * std::clamp<int64_t>(left + x, 0, from.width - 1), 3);
            line = edge.data();
        }
        if (mirrored)
            split<true>(line, side, side * side, to + y * side);
        else
            split<false>(line, side, side * side, to + y * side);
    }
}

void gather(const Picture& picture, const Places& places, int64_t side, int64_t down, int64_t right,
            bool mirrored, Patches& out) {
    const Pixels from = pixels(picture);
    if (side < 1 || int64_t(out.shape(1)) != 3 * side * side || out.shape(0) != places.shape(0))
        throw std::invalid_argument("patches and places do not fit together");
    const int64_t high = from.height / side, wide = from.width / side;
    for (size_t i = 0; i < places.shape(0); ++i)
        if (places(i, 1) < 0 || places(i, 1) >= high || places(i, 2) < 0 || places(i, 2) >= wide)
            throw std::out_of_range("a patch lies outside of the picture");
    nb::gil_scoped_release release;
    for (size_t i = 0; i < places.shape(0); ++i)
        patch_at(from, places(i, 1) * side - down, places(i, 2) * side - right, side, mirrored,
                 out.data() + i * 3 * size_t(side * side));
}

CLONES void recolour_one(uint8_t* patch, int64_t plane, const double* m) {
    constexpr int64_t most = 64;
    double red[most], green[most], blue[most];
    for (int64_t begin = 0; begin < plane; begin += most) {
        const int64_t count = std::min(most, plane - begin);
        uint8_t* at = patch + begin;
        for (int64_t i = 0; i < count; ++i) {
            red[i] = at[i];
            green[i] = at[plane + i];
            blue[i] = at[2 * plane + i];
        }
        for (int c = 0; c < 3; ++c, m += 4, at += plane)
            for (int64_t i = 0; i < count; ++i) {
                const double sum = m[0] * red[i] + m[1] * green[i] + m[2] * blue[i] + m[3] + 0.5;
                at[i] = uint8_t(int32_t(std::min(std::max(sum, 0.0), 255.0)));
            }
        m -= 12;
    }
}

void recolour(Patches& patches, const Matrix& matrix) {
    if (patches.shape(1) % 3) throw std::invalid_argument("patches must have three planes");
    nb::gil_scoped_release release;
    for (size_t i = 0; i < patches.shape(0); ++i)
        recolour_one(patches.data() + i * patches.shape(1), int64_t(patches.shape(1) / 3),
                     matrix.data());
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("resample", &resample, nb::arg("picture"), nb::arg("top"), nb::arg("left"),
          nb::arg("box_height"), nb::arg("box_width"), nb::arg("height"), nb::arg("width"));
    m.def("gather", &gather, nb::arg("picture"), nb::arg("places"), nb::arg("patch"),
          nb::arg("down"), nb::arg("right"), nb::arg("mirrored"), nb::arg("out"));
    m.def("recolour", &recolour, nb::arg("patches"), nb::arg("matrix"));
}
