// Kernels of the pixel estimate and of the energy; their numpy references, argument by argument the
// same, are in ovtrain/codec/kernels.py, which also explains the conventions.
//
// Vectors are (x, y) and point from the block in the current picture to its reference. Every kernel
// releases the GIL, allocates its own result and keeps no state.

#include "bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#if defined(__SSE4_1__)
#include <smmintrin.h>
#endif

namespace nb = nanobind;

namespace {

template <typename T>
using In2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using In1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In3 = nb::ndarray<const int16_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::ndarray<nb::numpy, T> hand_over(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(raw, shape, owner);
}

// Weight of each source line in the band [first, last) of fractional line coordinates.
struct Band {
    int first = 0;
    std::vector<double> weights;
    double length = 0;
};

std::vector<Band> bands(const double* edges, size_t count, int lines) {
    std::vector<Band> found(count);
    for (size_t i = 0; i < count; ++i) {
        const double low = std::clamp(edges[i], 0.0, double(lines));
        const double high = std::clamp(edges[i + 1], low, double(lines));
        Band& band = found[i];
        band.first = int(std::floor(low));
        band.length = high - low;
        for (int line = band.first; line < high; ++line)
            band.weights.push_back(std::min(high, line + 1.0) - std::max(low, double(line)));
    }
    return found;
}

nb::ndarray<nb::numpy, float> patch_means(In2<float> values, In1<double> rows, In1<double> columns) {
    if (rows.size() < 2 || columns.size() < 2)
        throw std::invalid_argument("patch_means needs at least two row and two column edges");
    const size_t height = rows.size() - 1, width = columns.size() - 1, pitch = values.shape(1);
    auto means = std::make_unique<float[]>(height * width);
    {
        nb::gil_scoped_release release;
        const auto row_bands = bands(rows.data(), height, int(values.shape(0)));
        const auto column_bands = bands(columns.data(), width, int(pitch));
        std::vector<double> line(pitch);
        for (size_t i = 0; i < height; ++i) {
            std::fill(line.begin(), line.end(), 0.0);
            for (size_t k = 0; k < row_bands[i].weights.size(); ++k) {
                const float* row = values.data() + (row_bands[i].first + k) * pitch;
                const double weight = row_bands[i].weights[k];
                for (size_t x = 0; x < pitch; ++x) line[x] += weight * row[x];
            }
            for (size_t j = 0; j < width; ++j) {
                const Band& band = column_bands[j];
                double sum = 0;
                for (size_t k = 0; k < band.weights.size(); ++k)
                    sum += band.weights[k] * line[band.first + k];
                const double area = row_bands[i].length * band.length;
                means[i * width + j] = area > 0 ? float(sum / area) : 0.0f;
            }
        }
    }
    return hand_over(std::move(means), {height, width});
}

// Displacements within the radius, shortest first, so that a strict "better than" prefers zero.
struct Step {
    int x, y;
};

std::vector<Step> spiral(int radius) {
    std::vector<Step> steps;
    for (int y = -radius; y <= radius; ++y)
        for (int x = -radius; x <= radius; ++x) steps.push_back({x, y});
    std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
        return a.x * a.x + a.y * a.y < b.x * b.x + b.y * b.y;
    });
    return steps;
}

// A picture with `radius` repeated edge pixels around it; `at(y, x)` takes picture coordinates.
struct Padded {
    int radius, pitch;
    std::vector<uint8_t> pixels;

    Padded(const uint8_t* data, int height, int width, int radius)
        : radius(radius), pitch(width + 2 * radius) {
        pixels.resize(size_t(pitch) * (height + 2 * radius) + 32);  // vector loads may run over
        for (int y = 0; y < height + 2 * radius; ++y) {
            const uint8_t* from = data + size_t(std::clamp(y - radius, 0, height - 1)) * width;
            uint8_t* to = pixels.data() + size_t(y) * pitch;
            std::memset(to, from[0], radius);
            std::memcpy(to + radius, from, width);
            std::memset(to + radius + width, from[width - 1], radius);
        }
    }
    const uint8_t* at(int y, int x) const {
        return pixels.data() + size_t(y + radius) * pitch + x + radius;
    }
};

// Sum of absolute differences, given up once it cannot become smaller than `best`.
int difference(const uint8_t* a, int a_pitch, const uint8_t* b, int b_pitch, int height, int width,
               int best) {
    int sum = 0;
    for (int y = 0; y < height && sum < best; ++y, a += a_pitch, b += b_pitch)
        for (int x = 0; x < width; ++x) sum += std::abs(int(a[x]) - int(b[x]));
    return sum;
}

Step search_plain(const uint8_t* here, int here_pitch, const uint8_t* there, int there_pitch,
                  int rows, int columns, const std::vector<Step>& steps) {
    int best = INT32_MAX;
    Step chosen{0, 0};
    for (const Step& step : steps) {
        const int cost = difference(here, here_pitch, there + step.y * there_pitch + step.x,
                                    there_pitch, rows, columns, best);
        if (cost >= best) continue;
        best = cost;
        chosen = step;
        if (best == 0) break;
    }
    return chosen;
}

#if defined(__SSE4_1__)
// Whole 8 x 8 blocks, eight neighbouring displacements per instruction. `costs` holds a row of
// `stride` (a multiple of 8) sums for each vertical displacement.
Step search_8x8(const uint8_t* here, int here_pitch, const uint8_t* there, int there_pitch,
                int radius, const std::vector<Step>& steps, std::vector<uint16_t>& costs) {
    if (difference(here, here_pitch, there, there_pitch, 8, 8, 1) == 0) return {0, 0};
    const int stride = (2 * radius + 8) & ~7;
    __m128i rows[8];
    for (int y = 0; y < 8; ++y)
        rows[y] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(here + y * here_pitch));
    for (int dy = -radius; dy <= radius; ++dy)
        for (int offset = 0; offset < stride; offset += 8) {
            const uint8_t* from = there + dy * there_pitch - radius + offset;
            __m128i sum = _mm_setzero_si128();
            for (int y = 0; y < 8; ++y, from += there_pitch) {
                const __m128i past = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
                sum = _mm_add_epi16(sum, _mm_mpsadbw_epu8(past, rows[y], 0));
                sum = _mm_add_epi16(sum, _mm_mpsadbw_epu8(past, rows[y], 5));
            }
            uint16_t* to = costs.data() + (dy + radius) * stride + offset;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), sum);
        }
    int best = INT32_MAX;
    Step chosen{0, 0};
    for (const Step& step : steps) {
        const int cost = costs[(step.y + radius) * stride + step.x + radius];
        if (cost >= best) continue;
        best = cost;
        chosen = step;
    }
    return chosen;
}
#endif

nb::ndarray<nb::numpy, int16_t> block_motion(In2<uint8_t> current, In2<uint8_t> reference,
                                             int block, int radius) {
    const int height = int(current.shape(0)), width = int(current.shape(1));
    if (int(reference.shape(0)) != height || int(reference.shape(1)) != width)
        throw std::invalid_argument("block_motion needs two pictures of one size");
    if (block < 1 || radius < 0 || radius > 1024 || height < 1 || width < 1)
        throw std::invalid_argument("block_motion needs block >= 1 and 0 <= radius <= 1024");
    const int down = (height + block - 1) / block, across = (width + block - 1) / block;
    auto motion = std::make_unique<int16_t[]>(size_t(down) * across * 2);
    {
        nb::gil_scoped_release release;
        const auto steps = spiral(radius);
        const Padded past(reference.data(), height, width, radius);
        std::vector<uint16_t> costs(size_t(2 * radius + 1) * (2 * radius + 8));
        for (int i = 0; i < down; ++i)
            for (int j = 0; j < across; ++j) {
                const int y = i * block, x = j * block;
                const int rows = std::min(block, height - y), columns = std::min(block, width - x);
                const uint8_t* here = current.data() + size_t(y) * width + x;
                Step found;
#if defined(__SSE4_1__)
                if (rows == 8 && columns == 8)
                    found = search_8x8(here, width, past.at(y, x), past.pitch, radius, steps, costs);
                else
#endif
                    found = search_plain(here, width, past.at(y, x), past.pitch, rows, columns, steps);
                int16_t* out = motion.get() + 2 * (size_t(i) * across + j);
                out[0] = int16_t(found.x);
                out[1] = int16_t(found.y);
            }
    }
    return hand_over(std::move(motion), {size_t(down), size_t(across), 2});
}

// One 4 x 4 block (or what the picture's edge leaves of it), bilinear at quarter pixels.
void compensate_block(const uint8_t* from, int height, int width, int y0, int x0, int mx, int my,
                      uint8_t* to) {
    const int dx = mx >> 2, dy = my >> 2, fx = mx & 3, fy = my & 3;
    const bool inside = y0 + std::min(dy, 0) >= 0 && y0 + std::max(dy, 0) + 4 <= height &&
                        x0 + std::min(dx, 0) >= 0 && x0 + std::max(dx, 0) + 4 <= width;
    if (fx == 0 && fy == 0 && inside) {
        for (int y = y0; y < y0 + 4; ++y)
            std::memcpy(to + size_t(y) * width + x0, from + size_t(y + dy) * width + x0 + dx, 4);
        return;
    }
    for (int y = y0; y < std::min(y0 + 4, height); ++y) {
        const auto* above = from + size_t(std::clamp(y + dy, 0, height - 1)) * width;
        const auto* below = from + size_t(std::clamp(y + dy + 1, 0, height - 1)) * width;
        for (int x = x0; x < std::min(x0 + 4, width); ++x) {
            const int left = std::clamp(x + dx, 0, width - 1);
            const int right = std::clamp(x + dx + 1, 0, width - 1);
            const int top = (4 - fx) * above[left] + fx * above[right];
            const int bottom = (4 - fx) * below[left] + fx * below[right];
            to[size_t(y) * width + x] = uint8_t(((4 - fy) * top + fy * bottom + 8) >> 4);
        }
    }
}

nb::ndarray<nb::numpy, uint8_t> compensate(In2<uint8_t> reference, In3 motion) {
    const int height = int(reference.shape(0)), width = int(reference.shape(1));
    const int down = (height + 3) / 4, across = (width + 3) / 4;
    if (int(motion.shape(0)) != down || int(motion.shape(1)) != across || motion.shape(2) != 2)
        throw std::invalid_argument("compensate needs motion of shape (ceil(H/4), ceil(W/4), 2)");
    auto picture = std::make_unique<uint8_t[]>(size_t(height) * width);
    {
        nb::gil_scoped_release release;
        for (int i = 0; i < down; ++i)
            for (int j = 0; j < across; ++j) {
                const int16_t* vector = motion.data() + 2 * (size_t(i) * across + j);
                compensate_block(reference.data(), height, width, 4 * i, 4 * j, vector[0],
                                 vector[1], picture.get());
            }
    }
    return hand_over(std::move(picture), {size_t(height), size_t(width)});
}

}  // namespace

void bind_kernels(nb::module_& m) {
    m.def("patch_means", &patch_means, nb::arg("values"), nb::arg("rows"), nb::arg("columns"));
    m.def("block_motion", &block_motion, nb::arg("current"), nb::arg("reference"), nb::arg("block"),
          nb::arg("radius"));
    m.def("compensate", &compensate, nb::arg("reference"), nb::arg("motion"));
}
