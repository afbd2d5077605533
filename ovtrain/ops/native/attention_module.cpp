// Attention of packed sequences on a CPU; its reference is torch's. Here arrays are checked for shape
// and type, the GIL is released, and heads are shared among `threads`.

#include "attention.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace {

template <typename T>
using Column = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const char* what) { throw std::invalid_argument(what); }

using Heads = nb::ndarray<nb::ndim<3>, nb::device::cpu>;

// (N, H, d) bfloat16 tokens of packed sequences; `like` says of what shape.
struct Tokens {
    uint16_t* data;
    int64_t row, head;
    Tokens(const Heads& array, const Heads& like, const char* name)
        : data(static_cast<uint16_t*>(array.data())),
          row(array.stride(0)),
          head(array.stride(1)) {
        const auto type = array.dtype();
        const bool half = type.lanes == 1 && type.bits == 16 &&
                          type.code == uint8_t(nb::dlpack::dtype_code::Bfloat);
        bool fits = half && array.stride(2) == 1 && array.shape(2) % 32 == 0;
        for (size_t axis = 0; axis < 3; ++axis) fits &= array.shape(axis) == like.shape(axis);
        if (!fits)
            throw std::invalid_argument(std::string(name) +
                                        " must be bfloat16 (N, H, d), d a multiple of 32 in a row");
    }
    HeadRows of(int64_t first, int64_t number) const {
        return {data + first * row + number * head, row};
    }
};

struct Aligned {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Calls work(first token, head, shape, scratch) for each head of each sequence.
template <typename Work>
void each_head(const Column<const int32_t>& bounds, const Heads& like, float scale, int threads,
               int64_t (*bytes)(HeadShape), const Work& work) {
    const int64_t sequences = int64_t(bounds.size()) - 1, heads = int64_t(like.shape(1));
    const int32_t* const edge = bounds.data();
    if (sequences < 0 || edge[0] != 0 || edge[sequences] != int64_t(like.shape(0)) ||
        !std::is_sorted(edge, edge + sequences + 1))
        refuse("attend: bounds do not fit");
    if (!attention_runs_here()) refuse("attend: this processor has no bfloat16 products");
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; ++i)
        longest = std::max<int64_t>(longest, edge[i + 1] - edge[i]);
    const int64_t d = int64_t(like.shape(2)), size = bytes({longest, d, scale});
    nb::gil_scoped_release release;
#pragma omp parallel num_threads(threads)
    {
        const std::unique_ptr<void, Aligned> scratch(
            ::operator new(size_t(size), std::align_val_t(64)));
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t i = 0; i < sequences; ++i)
            for (int64_t h = 0; h < heads; ++h)
                work(edge[i], h, HeadShape{edge[i + 1] - edge[i], d, scale}, scratch.get());
    }
}

// lse (H, N).
using Sums = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

float* sums_of(const Sums& lse, const Heads& like) {
    if (lse.shape(0) != like.shape(1) || lse.shape(1) != like.shape(0))
        refuse("attend: lse does not fit");
    return lse.data();
}

void attend_heads(Heads q, Heads k, Heads v, Column<const int32_t> bounds, Heads out, Sums lse,
                  float scale, int threads) {
    const Tokens from(q, q, "q"), keys(k, q, "k"), values(v, q, "v"), to(out, q, "out");
    float* const sums = sums_of(lse, q);
    const int64_t count = int64_t(q.shape(0));
    each_head(bounds, q, scale, threads, forward_scratch,
              [&](int64_t at, int64_t h, HeadShape shape, void* scratch) {
                  attend(shape, from.of(at, h), keys.of(at, h), values.of(at, h), to.of(at, h),
                         sums + h * count + at, scratch);
              });
}

void attend_heads_backward(Heads q, Heads k, Heads v, Column<const int32_t> bounds, Heads out,
                           Sums lse, Heads grad, Heads dq, Heads dk, Heads dv, float scale,
                           int threads) {
    const Tokens from(q, q, "q"), keys(k, q, "k"), values(v, q, "v"), given(out, q, "out"),
        towards(grad, q, "grad"), to_q(dq, q, "dq"), to_k(dk, q, "dk"), to_v(dv, q, "dv");
    const float* const sums = sums_of(lse, q);
    const int64_t count = int64_t(q.shape(0));
    each_head(bounds, q, scale, threads, backward_scratch,
              [&](int64_t at, int64_t h, HeadShape shape, void* scratch) {
                  attend_backward(shape, from.of(at, h), keys.of(at, h), values.of(at, h),
                                  given.of(at, h), sums + h * count + at, towards.of(at, h),
                                  {to_q.of(at, h), to_k.of(at, h), to_v.of(at, h)}, scratch);
              });
}

}  // namespace

void bind_attention(nb::module_& m) {
    const auto array = nb::arg().noconvert();
    const auto value = nb::arg();
    m.def("attention_runs_here", &attention_runs_here);
    m.def("attend", &attend_heads, array, array, array, array, array, array, value, value);
    m.def("attend_backward", &attend_heads_backward, array, array, array, array, array, array,
          array, array, array, array, value, value);
}
