// One row at a time, in float32 whatever the arrays hold; each kernel is compiled for several
// instruction sets and the best is taken at load time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

enum class Kind { float32, bfloat16 };

// A run of float32 or bfloat16 numbers.
struct Values {
    void* data;
    Kind kind;
    Values operator+(int64_t offset) const {
        return {static_cast<char*>(data) + offset * (kind == Kind::float32 ? 4 : 2), kind};
    }
};

void load(Values from, int64_t count, float* to);
void store(const float* from, int64_t count, Values to);  // bfloat16: to nearest even
float dot(const float* a, const float* b, int64_t count);
void multiply(float* a, float factor, int64_t count);
void add(const float* a, float factor, int64_t count, float* to);  // to += factor * a

// a <- (a - (a.b) b) * scale: the gradient of a row from that of its unit row b.
void remove_along(float* a, const float* b, float scale, int64_t count);

// Negative terms of one sample against `count` rows, cosines replaced by the loss's gradient:
// sum of coefficient * weight * log(1 + exp(scale * cosine + bias)), which is returned.
float logistic(Values cosines, const float* weight, int64_t count, float coefficient, float scale,
               float bias);

// Running maximum `peak` of scale * cosine and `total`, the weighted sum of exp(. - peak).
// Cosines above `ceiling` count as 0.
void exponential_sum(Values cosines, const float* weight, int64_t count, float scale, float ceiling,
                     float& peak, float& total);

// out <- coefficient * weight * exp(scale * cosine - peak), 0 where the cosine is above `ceiling`.
void exponential(Values cosines, const float* weight, int64_t count, float coefficient, float peak,
                 float scale, float ceiling, Values out);

// What all rows of an optimizer step share.
struct Step {
    float clip, lr, beta1, keep2, take2, eps;
    uint32_t key;  // of the step's stochastic rounding
};

// What a row has of its own: its decay, its bias corrections, its global number.
struct RowStep {
    float decay, correction1, correction2;
    uint64_t number;
};

struct Scratch {
    std::vector<float> row, gradient, moment;
    explicit Scratch(int64_t width) : row(width), gradient(width), moment(width) {}
};

// One optimizer step of a row; `moment.data` may be null; `second` is one number (`per_row`) or one
// per column. bfloat16 rows and moments are rounded stochastically.
void update(Values row, Values moment, float* second, bool per_row, Values gradient, int64_t width,
            const Step& step, const RowStep& own, Scratch& scratch);
