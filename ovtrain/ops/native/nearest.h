// Nearest centers of points on CPUs with AVX-512 and its bfloat16 products; the reference, and why
// the result is exact, is in ovtrain/ops/nearest_torch.py. All but search
// runs on one thread.
#pragma once

#include <cstdint>

struct Centers {
    int64_t count, width;
    const float* rows;       // (count, width)
    const float* mean;       // (width)
    const uint32_t* panels;  // of pack_panel
    const float* bias;       // -|c - mean|^2 / 2, as many as the panels have columns, -inf beyond count
    double longest, off;     // max |c - mean|, max |c - mean - its bfloat16|
};

// Rows of float16 or float32.
struct Points {
    const void* data;
    bool half;
    int64_t width;
    const void* row(int64_t i) const {
        return static_cast<const char*>(data) + i * width * (half ? 2 : 4);
    }
};

// Candidates of a block of points. What is below `least` is no candidate any more; `full` rows have
// more candidates than `room` and none are given.
struct Block {
    int64_t rows, top, room;
    uint32_t* packed;
    float *partial, *score, *least;
    int32_t *id, *count, *limit;
    double *squares, *error;  // |x - mean|^2, the error of scores
    float* window;            // candidates lie this close to the best `top`
    uint8_t* full;
};

bool nearest_runs_here();
int64_t block_rows(int64_t width);
int64_t candidate_room(int64_t top);
int64_t panel_columns(int64_t count);
int64_t panel_words(int64_t count, int64_t width);

// `scratch`, of any alignment of 64, holds the block; with null the bytes it takes are counted.
int64_t lay_out(Block& block, int64_t width, void* scratch);

// What `centers` still needs of one panel, from its rows and mean: part of the panels and the bias;
// `longest` and `off` grow.
void pack_panel(const Centers& centers, int64_t panel, uint32_t* panels, float* bias,
                double& longest, double& off);

// Fills all of the block but rows, top and room, with the candidates of rows from `first` on.
void find_candidates(const Centers& centers, Points points, int64_t first, Block& block);

void widen(Points points, int64_t row, float* to);

// Squared distances of x to four rows in the order of the reference; rows of `next` are fetched.
void squared_distances(const float* x, const float* const* rows, const float* const* next,
                       int64_t width, float* out);

// to[i] += point[i] * scale for columns first..last-1, rounded half to even.
void add_fixed(Points points, int64_t row, int64_t first, int64_t last, double scale, int64_t* to);

// The `top` nearest centers of `count` points to ids and squared (count, top); how many rows had no
// proof.
int64_t search(const Centers& centers, Points points, int64_t count, int64_t top, int32_t* ids,
               float* squared, int threads);

// Relative error of squared_distances.
static inline double distance_error(int64_t width) { return double((width + 63) / 64 + 10) * 0x1p-24; }
static inline double smallest_error(int64_t width) { return double(width) * 0x1p-148; }
