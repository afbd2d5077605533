// Exact search: blocks of points are shared among threads, candidates are ranked by their distances,
// and rows without a proof go through all centers.

#include "nearest.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

struct Aligned {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// A distance and an id, in the order of both; a distance that is no number is last.
uint64_t key_of(float squared, int64_t id) {
    uint32_t bits;
    std::memcpy(&bits, &squared, 4);
    return uint64_t(bits & 0x7FFFFFFF) << 32 | uint64_t(id);
}

float distance_of(uint64_t key) {
    const uint32_t bits = uint32_t(key >> 32);
    float squared;
    std::memcpy(&squared, &bits, 4);
    return squared;
}

// The `top` lowest keys so far, a heap.
struct Best {
    std::vector<uint64_t> keys;
    size_t top;
    explicit Best(int64_t top) : top(size_t(top)) { keys.reserve(size_t(top)); }
    bool whole() const { return keys.size() == top; }
    uint64_t last() const { return keys.front(); }
    void offer(uint64_t key) {
        if (!whole()) {
            keys.push_back(key);
        } else {
            if (key >= last()) return;
            std::pop_heap(keys.begin(), keys.end());
            keys.back() = key;
        }
        std::push_heap(keys.begin(), keys.end());
    }
    void give(int32_t* ids, float* squared) {
        std::sort_heap(keys.begin(), keys.end());
        for (size_t i = 0; i < keys.size(); ++i) {
            ids[i] = int32_t(uint32_t(keys[i]));
            squared[i] = distance_of(keys[i]);
        }
        keys.clear();
    }
};

// Distances of one point to centers ids[0..count-1], four at a time; those of `next` are fetched.
template <typename Id, typename Next>
void offer_four(const Centers& c, const float* x, Id id, int64_t count, Next next, Best& best) {
    const float *rows[4], *following[4];
    for (int64_t i = 0; i < 4; ++i) {
        rows[i] = c.rows + id(std::min(i, count - 1)) * c.width;
        following[i] = c.rows + next(i) * c.width;
    }
    float squared[4];
    squared_distances(x, rows, following, c.width, squared);
    for (int64_t i = 0; i < std::min<int64_t>(4, count); ++i)
        best.offer(key_of(squared[i], id(i)));
}

// What a thread needs for a block of points.
struct Worker {
    const Centers& centers;
    Block block{};
    std::unique_ptr<void, Aligned> scratch;
    std::vector<float> x;
    std::vector<uint64_t> order;  // candidates of all rows, the best scores first
    Best best;

    Worker(const Centers& c, int64_t rows, int64_t top)
        : centers(c), x(size_t(c.width)), best(top) {
        block.rows = rows;
        block.top = top;
        block.room = candidate_room(top);
        const int64_t bytes = lay_out(block, c.width, nullptr);
        scratch.reset(::operator new(size_t(bytes), std::align_val_t(64)));
        lay_out(block, c.width, scratch.get());
    }

    // Candidates by falling scores: their number in the row behind bits that sort like the score.
    void sort_candidates() {
        const int64_t stride = block.room + panel_columns(1);
        order.clear();
        for (int64_t r = 0; r < block.rows; ++r) {
            const size_t start = order.size();
            for (int64_t i = 0; i < block.count[r]; ++i) {
                uint32_t bits;
                std::memcpy(&bits, block.score + r * stride + i, 4);
                const uint32_t falling = bits >> 31 ? bits : ~bits & 0x7FFFFFFF;
                order.push_back(uint64_t(falling) << 32 | uint32_t(r * stride + i));
            }
            std::sort(order.begin() + int64_t(start), order.end());
        }
        order.push_back(order.empty() ? 0 : order.back());  // one to fetch after the last
    }

    float score(size_t at) const { return block.score[uint32_t(order[at])]; }
    int64_t id(size_t at) const { return block.id[uint32_t(order[at])]; }

    // Whether the candidate at `at` and all after it are farther than the last of the best.
    bool beyond(int64_t r, size_t at) const {
        const double least = block.squares[r] - 2 * (double(score(at)) + block.error[r]);
        const double most = double(distance_of(best.last())) * (1 + 3 * distance_error(centers.width));
        return least > most + smallest_error(centers.width);
    }

    void rank(Points points, int64_t first, int32_t* ids, float* squared, uint8_t* again) {
        sort_candidates();
        size_t at = 0;
        for (int64_t r = 0; r < block.rows; ++r) {
            again[first + r] = block.full[r];
            const size_t end = at + size_t(block.count[r]);
            widen(points, first + r, x.data());
            while (at < end && !(best.whole() && beyond(r, at))) {
                const size_t next = std::min(at + 4, end);
                offer_four(centers, x.data(), [&](int64_t i) { return id(at + size_t(i)); },
                           int64_t(next - at),
                           [&](int64_t i) {
                               return id(std::min(next + size_t(i), order.size() - 1));
                           },
                           best);
                at = next;
            }
            at = end;
            if (!block.full[r])
                best.give(ids + (first + r) * block.top, squared + (first + r) * block.top);
        }
    }
};

// Rows `chosen`, through all centers: a few rows at a time, so that centers are read from caches.
void search_all(const Centers& c, Points points, const std::vector<int64_t>& chosen, int64_t top,
                int32_t* ids, float* squared, int threads) {
    constexpr int64_t ROWS = 8, CENTERS = 64;
    const int64_t count = int64_t(chosen.size());
#pragma omp parallel num_threads(threads)
    {
        std::vector<Best> best(ROWS, Best(top));
        std::vector<float> x(size_t(ROWS * c.width));
#pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < count; start += ROWS) {
            const int64_t rows = std::min(ROWS, count - start);
            for (int64_t r = 0; r < rows; ++r)
                widen(points, chosen[size_t(start + r)], x.data() + r * c.width);
            for (int64_t from = 0; from < c.count; from += CENTERS)
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t j = from; j < std::min(from + CENTERS, c.count); j += 4)
                        offer_four(c, x.data() + r * c.width, [=](int64_t i) { return j + i; },
                                   std::min<int64_t>(4, c.count - j),
                                   [&](int64_t i) { return std::min(j + 4 + i, c.count - 1); },
                                   best[size_t(r)]);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t to = chosen[size_t(start + r)] * top;
                best[size_t(r)].give(ids + to, squared + to);
            }
        }
    }
}

// Where many of the centers are asked for, all are ranked at once.
bool worth_it(int64_t count, int64_t top) { return 4 * top <= count; }

}  // namespace

int64_t search(const Centers& c, Points points, int64_t count, int64_t top, int32_t* ids,
               float* squared, int threads) {
    std::vector<uint8_t> again(size_t(count), 1);
    const bool candidates = worth_it(c.count, top);
    if (candidates) {
        const int64_t share = std::max<int64_t>((count + threads - 1) / threads, 1);
        const int64_t rows = std::min(block_rows(c.width), share);
#pragma omp parallel num_threads(threads)
        {
            Worker worker(c, rows, top);
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < count; first += rows) {
                worker.block.rows = std::min(rows, count - first);
                find_candidates(c, points, first, worker.block);
                worker.rank(points, first, ids, squared, again.data());
            }
        }
    }
    std::vector<int64_t> left;
    for (int64_t i = 0; i < count; ++i)
        if (again[size_t(i)]) left.push_back(i);
    search_all(c, points, left, top, ids, squared, threads);
    return candidates ? int64_t(left.size()) : 0;
}
