// Hashes sorted into buckets by some of their bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

struct Band {
    unsigned start = 0, width = 0;  // bits
};

struct Rows {
    const uint64_t* words;
    const uint32_t* ids;     // numbers of the distinct hashes
    const uint64_t* groups;  // where components are asked for: rows of a group are joined already
    size_t count;
    bool grouped;  // `groups` is sorted and some are equal
};

// Rows sorted by the bits of a band, and within a bucket by group.
class Buckets {
public:
    Buckets(Rows rows, size_t words, Band band)
        : words_(words), copies_(rows.count * words), ids_(rows.count), groups_(rows.count) {
        std::vector<uint32_t> keys(rows.count);
        starts_.resize((size_t(1) << band.width) + 1);
        for (size_t i = 0; i < rows.count; ++i)
            ++starts_[(keys[i] = key(rows.words + i * words, band)) + 1];
        for (size_t i = 1; i < starts_.size(); ++i)
            if (starts_[i]) used_.push_back(uint32_t(i - 1));
        std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
        std::vector<uint32_t> next(starts_.begin(), starts_.end() - 1), order(rows.count);
        for (size_t i = 0; i < rows.count; ++i) order[next[keys[i]]++] = uint32_t(i);
        if (rows.groups) sort_by_group(rows.groups, order);
        for (size_t place = 0; place < rows.count; ++place) {
            const size_t from = order[place];
            std::copy_n(rows.words + from * words, words, copies_.data() + place * words);
            ids_[place] = rows.ids[from];
            if (rows.groups) groups_[place] = rows.groups[from];
        }
    }

    const std::vector<uint32_t>& used() const { return used_; }
    Rows at(uint32_t key) const {
        const size_t start = starts_[key];
        const bool grouped = !grouped_.empty() && grouped_[key];
        return {copies_.data() + start * words_, ids_.data() + start, groups_.data() + start,
                starts_[key + 1] - start, grouped};
    }

    static uint32_t key(const uint64_t* row, Band band) {
        const unsigned word = band.start / 64, shift = band.start % 64;
        uint64_t bits = row[word] >> shift;
        if (shift + band.width > 64) bits |= row[word + 1] << (64 - shift);
        return uint32_t(bits & ((uint64_t(1) << band.width) - 1));
    }

private:
    void sort_by_group(const uint64_t* groups, std::vector<uint32_t>& order) {
        grouped_.resize(starts_.size() - 1);
        const auto less = [&](uint32_t a, uint32_t b) { return groups[a] < groups[b]; };
        const auto same = [&](uint32_t a, uint32_t b) { return groups[a] == groups[b]; };
        for (const uint32_t key : used_) {
            const auto first = order.begin() + starts_[key], last = order.begin() + starts_[key + 1];
            std::sort(first, last, less);
            grouped_[key] = std::adjacent_find(first, last, same) != last;
        }
    }

    size_t words_;
    std::vector<uint64_t> copies_;
    std::vector<uint32_t> ids_;
    std::vector<uint64_t> groups_;
    std::vector<uint32_t> starts_, used_;
    std::vector<uint8_t> grouped_;  // by key
};
