// Pairs of hashes within a Hamming distance d, none missed.
//
// Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index
// Hashing", CVPR 2012) as a self-join. The bits are cut into bands with radii t_i such that the sum
// of (t_i + 1) is d + 1. Two hashes within d then agree to t_i in at least one band i, or they would
// be d + 1 apart. Per band the hashes are sorted into buckets by its bits, and buckets whose keys
// are within t_i of each other are compared.
//
// A pair is looked for in the first band that it agrees in. In the bands before it the two differ by
// t_j + 1 or more, so that the bands behind it hold at most d - sum of (t_j + 1) - (keys' distance)
// differences: where a pair of buckets is crowded, they are searched in turn by the bands behind,
// with that budget, as long as this costs less than comparing all. The bands with the most crowded
// buckets come first, so there is something left to tell their members apart.
//
// Where components alone are asked for, pairs that are joined already are passed over: rows of a
// bucket are grouped by component, groups of the same one are never compared, and one match between
// two groups is enough. So tight clusters cost little however many pairs they have.
//
// Cost: about (number of keys within t) * (n + n^2 / 2^width) per band where bits are independent.
// The worst case, distinct hashes that no band tells apart and that are not near, is n^2 / 2
// comparisons. Memory: the distinct hashes twice or three times and tables of 2^width offsets, and
// the rows of a crowded bucket again per depth.

#include "near.h"

#include "buckets.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

constexpr unsigned MOST_KEY_BITS = 22;
constexpr double MOST_MASKS = 1 << 20;
constexpr double LOOKUP = 10;  // what finding a bucket costs, in comparisons
constexpr size_t SAMPLE = 1 << 15;
constexpr double CROWDED = 1 << 22;  // comparisons: some milliseconds

using Radii = std::vector<int>;  // per band; -1: the band is not used

// Where a search stands: the bands it may use and what it is inside of.
struct Level {
    const Level* outer;
    size_t first;
    Radii radii;
    size_t band = 0;
};

double masks_within(unsigned width, int radius) {
    double total = 0, combinations = 1;
    for (int r = 0; r <= radius && r <= int(width); ++r) {
        total += combinations;
        combinations = combinations * (width - r) / (r + 1);
    }
    return total;
}

void add_masks(unsigned width, int radius, unsigned from, uint32_t mask,
               std::vector<uint32_t>& found) {
    found.push_back(mask);
    if (radius > 0)
        for (unsigned bit = from; bit < width; ++bit)
            add_masks(width, radius - 1, bit + 1, mask | 1u << bit, found);
}

// Radii of `bands` bands with sum of (t + 1) = distance + 1; the last ones get the rest.
Radii radii_for(size_t bands, int distance) {
    const int share = (distance + 1) / int(bands), rest = (distance + 1) % int(bands);
    Radii radii(bands, share - 1);
    for (int i = 0; i < rest; ++i) ++radii[bands - 1 - i];
    return radii;
}

// Expected comparisons and moves of searching `a` against `b` rows by these bands.
double cost_of(const Band* bands, const Radii& radii, double a, double b) {
    double total = 0;
    for (size_t i = 0; i < radii.size(); ++i) {
        if (radii[i] < 0) continue;
        const double masks = masks_within(bands[i].width, radii[i]);
        const double keys = std::ldexp(1.0, int(bands[i].width));
        if (masks > MOST_MASKS) return std::numeric_limits<double>::infinity();
        total += masks * (LOOKUP * std::min(a, keys) + a * b / keys) + keys + LOOKUP * (a + b);
    }
    return total;
}

class Search {
public:
    Search(size_t words, unsigned distance, const std::vector<uint32_t>& rows, Matches& out)
        : words_(words), distance_(distance), rows_(rows), out_(out) {}

    void run(Rows all) {
        choose_bands(all);
        if (bands_.empty())
            compare_all(all, all, true, nullptr);
        else
            search(all, all, true, nullptr, 0, int(distance_));
    }

private:
    // Bands of the least cost; none where comparing all costs less. Those that tell too few hashes
    // apart to be worth their share of the distance are left out, the others sorted by that.
    void choose_bands(Rows all) {
        const std::vector<Band> bands = cut_bands(double(all.count));
        if (out_.components_only())
            for (const Band& band : bands) join_with_first(all, band);
        std::vector<std::pair<double, Band>> crowds;
        for (const Band& band : bands) crowds.push_back({crowd(all, band), band});
        std::stable_sort(crowds.begin(), crowds.end(),
                         [](const auto& a, const auto& b) { return a.first > b.first; });
        double best = double(all.count) * double(all.count) / 2;
        for (size_t drop = 0; drop < crowds.size(); ++drop) {
            std::vector<Band> kept;
            double cost = 0;
            for (size_t i = drop; i < crowds.size(); ++i) {
                kept.push_back(crowds[i].second);
                cost += crowds[i].first / 2;
            }
            cost += whole_cost(kept, double(all.count));
            if (cost < best) {
                best = cost;
                bands_ = kept;
            }
        }
    }

    // As many bands of equal width as would cost least were all bits independent.
    std::vector<Band> cut_bands(double count) const {
        const unsigned bits = unsigned(64 * words_);
        double best = count * count / 2;
        std::vector<Band> bands;
        for (unsigned number = 1; number <= std::min(bits, distance_ + 1); ++number) {
            const unsigned room = bits / number, width = std::min(room, MOST_KEY_BITS);
            std::vector<Band> cut(number);
            for (unsigned i = 0; i < number; ++i) cut[i] = {i * room, width};
            const double cost = whole_cost(cut, count);
            if (cost < best) {
                best = cost;
                bands = cut;
            }
        }
        return bands;
    }

    double whole_cost(const std::vector<Band>& bands, double count) const {
        return cost_of(bands.data(), radii_for(bands.size(), int(distance_)), count, count / 2);
    }

    // Joins what a bucket's first member is near to: so most of a tight cluster is joined at once.
    void join_with_first(Rows all, Band band) {
        constexpr uint32_t NONE = std::numeric_limits<uint32_t>::max();
        std::vector<uint32_t> firsts(size_t(1) << band.width, NONE);
        for (size_t i = 0; i < all.count; ++i) {
            uint32_t& first = firsts[Buckets::key(all.words + i * words_, band)];
            if (first == NONE)
                first = uint32_t(i);
            else
                compare_rows(row_of(all, first), row_of(all, i), false, nullptr);
        }
    }

    Rows row_of(Rows rows, size_t i) const { return {rows.words + i * words_, rows.ids + i, nullptr, 1, false}; }

    // Ordered pairs that share a bucket and are not known to be joined, estimated on a sample.
    double crowd(Rows all, Band band) {
        const size_t step = all.count / SAMPLE + 1;
        std::vector<std::pair<uint32_t, uint64_t>> places;
        for (size_t i = 0; i < all.count; i += step)
            places.push_back({Buckets::key(all.words + i * words_, band), out_.root(rows_[i])});
        std::sort(places.begin(), places.end());
        const auto squares = [&](auto same) {
            double total = 0;
            for (size_t i = 0, first = 0; i < places.size(); ++i) {
                if (!same(places[i], places[first])) first = i;
                total += 2 * double(i - first) + 1;
            }
            return total;
        };
        const double sharing = squares([](auto& a, auto& b) { return a.first == b.first; });
        const double joined = squares([](auto& a, auto& b) { return a == b; });
        return (sharing - joined) * double(step) * double(step);
    }

    // Pairs of `a` with `b` (`self`: within `a`) that differ by `budget` or less in bands_[first:].
    void search(Rows a, Rows b, bool self, const Level* outer, size_t first, int budget) {
        Level level{outer, first, radii_for(bands_.size() - first, budget)};
        for (level.band = first; level.band < bands_.size(); ++level.band) {
            const int radius = level.radii[level.band - first];
            if (radius < 0) continue;
            const Band band = bands_[level.band];
            std::vector<uint32_t> masks;
            add_masks(band.width, radius, 0, 0, masks);
            const Buckets left = bucketed(a, band);
            if (self)
                join(left, left, true, masks, level, budget);
            else
                join(left, bucketed(b, band), false, masks, level, budget);
            budget -= radius + 1;
        }
    }

    Buckets bucketed(Rows rows, Band band) {
        if (!out_.components_only()) return Buckets(rows, words_, band);
        std::vector<uint64_t> groups(rows.count);
        for (size_t i = 0; i < rows.count; ++i) groups[i] = root(rows, i);
        rows.groups = groups.data();
        return Buckets(rows, words_, band);
    }

    void join(const Buckets& left, const Buckets& right, bool self,
              const std::vector<uint32_t>& masks, const Level& level, int budget) {
        for (const uint32_t mask : masks) {
            out_.breathe();
            const int rest = budget - __builtin_popcount(mask);
            for (const uint32_t key : left.used()) {
                if (self && (key ^ mask) < key) continue;  // once per pair of buckets
                const Rows there = right.at(key ^ mask);
                if (there.count) meet(left.at(key), there, self && !mask, level, rest);
            }
        }
    }

    void meet(Rows a, Rows b, bool self, const Level& level, int budget) {
        const double pairs = double(a.count) * double(b.count);
        if (pairs <= CROWDED || (one_group(a) && one_group(b)))
            return compare_all(a, b, self, &level);
        out_.breathe();
        const size_t next = level.band + 1, bands = bands_.size() - next;
        if (bands && cost_of(&bands_[next], radii_for(bands, budget), double(a.count),
                             double(b.count)) < pairs)
            search(a, b, self, &level, next, budget);
        else
            compare_all(a, b, self, &level);
    }

    uint64_t root(Rows rows, size_t i) { return out_.root(rows_[rows.ids[i]]); }

    static bool one_group(Rows rows) {
        return rows.grouped && rows.groups[0] == rows.groups[rows.count - 1];
    }

    void compare_all(Rows a, Rows b, bool self, const Level* level) {
        if (!a.grouped && !b.grouped) return compare_rows(a, b, self, level);
        for (size_t i = 0; i < a.count;) {
            const Rows mine = group_at(a, i);
            i += mine.count;
            for (size_t j = self ? i : 0; j < b.count;) {
                const Rows other = group_at(b, j);
                j += other.count;
                if (mine.groups[0] != other.groups[0] && root(mine, 0) != root(other, 0))
                    compare_rows(mine, other, false, level);
            }
        }
    }

    Rows group_at(Rows rows, size_t first) const {
        size_t end = first + 1;
        while (end < rows.count && rows.groups[end] == rows.groups[first]) ++end;
        return {rows.words + first * words_, rows.ids + first, rows.groups + first, end - first,
                end - first > 1};
    }

    void compare_rows(Rows a, Rows b, bool self, const Level* level) {
        if (words_ == 1) return compare<1>(a, b, self, level);
        if (words_ == 4) return compare<4>(a, b, self, level);
        compare<0>(a, b, self, level);
    }

    template <size_t Words>
    void compare(Rows a, Rows b, bool self, const Level* level) {
        const size_t words = Words ? Words : words_;
        const bool one_is_enough = a.grouped || b.grouped;  // two groups: one match joins all
        for (size_t i = 0; i < a.count; ++i) {
            if (b.count > 4096 && i % 16 == 0) out_.breathe();
            const uint64_t* mine = a.words + i * words;
            for (size_t j = self ? i + 1 : 0; j < b.count; ++j) {
                const uint64_t* other = b.words + j * words;
                if (!near<Words>(mine, other)) continue;
                if (!out_.components_only() && !here_first(mine, other, level)) continue;
                out_.match(rows_[a.ids[i]], rows_[b.ids[j]]);
                if (one_is_enough) return;
            }
        }
    }

    // No early way out: a branch that goes either way costs more than the words behind it.
    template <size_t Words>
    bool near(const uint64_t* a, const uint64_t* b) const {
        unsigned apart = 0;
        for (size_t w = 0; w < (Words ? Words : words_); ++w)
            apart += unsigned(__builtin_popcountll(a[w] ^ b[w]));
        return apart <= distance_;
    }

    // Whether no band before those that led here finds the pair as well.
    bool here_first(const uint64_t* a, const uint64_t* b, const Level* level) const {
        for (; level; level = level->outer)
            for (size_t i = level->first; i < level->band; ++i) {
                const uint32_t apart = Buckets::key(a, bands_[i]) ^ Buckets::key(b, bands_[i]);
                if (__builtin_popcount(apart) <= level->radii[i - level->first]) return false;
            }
        return true;
    }

    size_t words_;
    unsigned distance_;
    const std::vector<uint32_t>& rows_;  // the row that stands for each distinct hash
    Matches& out_;
    std::vector<Band> bands_;
};

struct Key {
    uint64_t word;
    uint32_t row;
};

}  // namespace

// Rows of the first of each distinct hash, in the order of the hashes; equal ones are matched.
static std::vector<uint32_t> distinct_rows(const uint64_t* hashes, size_t count, size_t words,
                                           Matches& out) {
    std::vector<Key> order(count);
    for (size_t i = 0; i < count; ++i) order[i] = {hashes[i * words], uint32_t(i)};
    const auto row = [&](const Key& key) { return hashes + key.row * words; };
    std::sort(order.begin(), order.end(), [&](const Key& a, const Key& b) {
        if (a.word != b.word) return a.word < b.word;
        const auto [x, y] = std::mismatch(row(a), row(a) + words, row(b));
        return x == row(a) + words ? a.row < b.row : *x < *y;
    });
    std::vector<uint32_t> rows;
    for (const Key& key : order)
        if (!rows.empty() && std::equal(row(key), row(key) + words, hashes + size_t(rows.back()) * words))
            out.match(rows.back(), key.row);
        else
            rows.push_back(key.row);
    return rows;
}

void find_near(const uint64_t* hashes, size_t count, size_t words, unsigned distance, Matches& out) {
    const std::vector<uint32_t> rows = distinct_rows(hashes, count, words, out);
    if (distance == 0) return;
    std::vector<uint64_t> distinct(rows.size() * words);
    std::vector<uint32_t> ids(rows.size());
    std::iota(ids.begin(), ids.end(), 0);
    for (const uint32_t id : ids)
        std::copy_n(hashes + size_t(rows[id]) * words, words, distinct.data() + size_t(id) * words);
    Search(words, distance, rows, out).run({distinct.data(), ids.data(), nullptr, ids.size(), false});
}
