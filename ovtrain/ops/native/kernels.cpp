#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(OVTRAIN_ONE_TARGET)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t CHUNK = 1024;

INLINE uint32_t bits(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

INLINE float number(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

INLINE uint16_t nearest(float x) {
    const uint32_t u = bits(x);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    return uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16) | 0x40u : rounded);
}

// Up with a probability equal to the part that is cut off; `noise` holds 16 random bits.
INLINE uint16_t stochastic(float x, uint32_t noise) {
    const uint32_t u = bits(x);
    return uint16_t(((u & 0x7F800000u) == 0x7F800000u ? u : u + noise) >> 16);
}

INLINE uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// exp for x <= 0: range reduction by powers of 2, relative error below 2e-7; 0 below -87.
INLINE float exp_negative(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float e = (p * r * r + r) + 1.0f;
    const float power = number((bits(shifted) - bits(magic) + 127u) << 23);
    return x < -87.0f ? 0.0f : e * power;
}

// log(1 + t) for t in [0, 1], by 2 atanh(t / (2 + t)); relative error below 2e-7.
INLINE float log1p_unit(float t) {
    const float s = t / (2.0f + t), q = s * s;
    float p = 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * s * (p * q + 1.0f);
}

INLINE void take(Values from, int64_t count, float* to) {
    if (from.kind == Kind::float32) {
        std::memcpy(to, from.data, size_t(count) * 4);
        return;
    }
    const uint16_t* raw = static_cast<const uint16_t*>(from.data);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = number(uint32_t(raw[i]) << 16);
}

INLINE void give(const float* from, int64_t count, Values to) {
    if (to.kind == Kind::float32) {
        std::memcpy(to.data, from, size_t(count) * 4);
        return;
    }
    uint16_t* raw = static_cast<uint16_t*>(to.data);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) raw[i] = nearest(from[i]);
}

// `shift`: which half of each column's 32 random bits.
INLINE void give_stochastic(const float* from, int64_t count, Values to, uint32_t seed, int shift) {
    if (to.kind == Kind::float32) return give(from, count, to);
    uint16_t* raw = static_cast<uint16_t*>(to.data);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
        raw[i] = stochastic(from[i], (mixed(seed + uint32_t(i) * 0x9E3779B9u) >> shift) & 0xFFFFu);
}

}  // namespace

CLONES void load(Values from, int64_t count, float* to) { take(from, count, to); }

CLONES void store(const float* from, int64_t count, Values to) { give(from, count, to); }

CLONES float dot(const float* a, const float* b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

CLONES void multiply(float* a, float factor, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) a[i] *= factor;
}

CLONES void add(const float* a, float factor, int64_t count, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += factor * a[i];
}

CLONES void remove_along(float* a, const float* b, float scale, int64_t count) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < count; ++i) along += a[i] * b[i];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) a[i] = (a[i] - along * b[i]) * scale;
}

CLONES float logistic(Values cosines, const float* weight, int64_t count, float coefficient,
                      float scale, float bias) {
    alignas(64) float x[CHUNK];
    const float slope = coefficient * scale;
    float loss = 0;
    for (int64_t start = 0; start < count; start += CHUNK) {
        const int64_t n = std::min(CHUNK, count - start);
        const float* w = weight + start;
        take(cosines + start, n, x);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
            const float z = x[i] * scale + bias;
            const float t = exp_negative(-std::fabs(z));
            const float share = (z >= 0 ? 1.0f : t) / (1.0f + t);
            sum += w[i] * ((z >= 0 ? z : 0.0f) + log1p_unit(t));
            x[i] = slope * w[i] * share;
        }
        loss += sum;
        give(x, n, cosines + start);
    }
    return coefficient * loss;
}

CLONES void exponential_sum(Values cosines, const float* weight, int64_t count, float scale,
                            float ceiling, float& peak, float& total) {
    alignas(64) float x[CHUNK];
    for (int64_t start = 0; start < count; start += CHUNK) {
        const int64_t n = std::min(CHUNK, count - start);
        const float* w = weight + start;
        take(cosines + start, n, x);
        float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < n; ++i) {
            const float z = x[i] > ceiling ? 0.0f : x[i] * scale;
            x[i] = w[i] == 0.0f ? -std::numeric_limits<float>::infinity() : z;
            most = most > x[i] ? most : x[i];
        }
        if (most > peak) {
            total *= std::exp(peak - most);
            peak = most;
        }
        const float shift = peak;
        if (std::isinf(shift)) continue;  // nothing but masked entries so far
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) sum += w[i] * exp_negative(x[i] - shift);
        total += sum;
    }
}

CLONES void exponential(Values cosines, const float* weight, int64_t count, float coefficient,
                        float peak, float scale, float ceiling, Values out) {
    alignas(64) float x[CHUNK];
    for (int64_t start = 0; start < count; start += CHUNK) {
        const int64_t n = std::min(CHUNK, count - start);
        const float* w = weight + start;
        take(cosines + start, n, x);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            const float e = exp_negative(x[i] * scale - peak);
            x[i] = x[i] > ceiling || w[i] == 0.0f ? 0.0f : coefficient * w[i] * e;
        }
        give(x, n, out + start);
    }
}

CLONES void update(Values row, Values moment, float* second, bool per_row, Values gradient,
                   int64_t width, const Step& step, const RowStep& own, Scratch& scratch) {
    float* w = scratch.row.data();
    float* g = scratch.gradient.data();
    float* m = scratch.moment.data();
    take(gradient, width, g);
    take(row, width, w);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) g[i] *= step.clip;
    const uint32_t high = uint32_t(own.number >> 32);
    const uint32_t seed = mixed(uint32_t(own.number) ^ mixed(step.key ^ high));
    const float* direction = g;
    if (moment.data) {
        take(moment, width, m);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) m[i] += (1.0f - step.beta1) * (g[i] - m[i]);
        direction = m;
    }
    const float rate = step.lr * own.correction1;
    if (per_row) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += g[i] * g[i];
        *second = step.keep2 * *second + step.take2 * (sum / float(width));
        const float pace = rate / (std::sqrt(*second * own.correction2) + step.eps);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) w[i] = own.decay * w[i] - pace * direction[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            second[i] = step.keep2 * second[i] + step.take2 * g[i] * g[i];
            const float scale = std::sqrt(second[i] * own.correction2) + step.eps;
            w[i] = own.decay * w[i] - rate * direction[i] / scale;
        }
    }
    if (moment.data) give_stochastic(m, width, moment, seed, 16);
    give_stochastic(w, width, row, seed, 0);
}
