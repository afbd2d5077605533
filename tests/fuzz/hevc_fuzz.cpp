// Damaged HEVC streams through the decoder: built with the sanitizers by run.py, which names what it
// does. Each input is decoded as a caller would, one access unit after the other, frames popped.
//
//     hevc_fuzz SEED COUNT STREAM...        annex B files
//
// Prints one line of counts. A sanitizer's finding, an exception that is none of the two promised
// ones, an input that allocates beyond the bound or takes too long ends it with another status.

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "decoder.h"

namespace {

size_t live = 0, peak = 0;

void* counted(size_t bytes) {
    void* place = std::malloc(bytes ? bytes : 1);
    if (!place) throw std::bad_alloc();
    live += malloc_usable_size(place);
    peak = std::max(peak, live);
    return place;
}

void uncounted(void* place) {
    if (!place) return;
    live -= malloc_usable_size(place);
    std::free(place);
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void operator delete(void* place, const std::nothrow_t&) noexcept { uncounted(place); }
void operator delete(void* place) noexcept { uncounted(place); }
void operator delete[](void* place) noexcept { uncounted(place); }
void operator delete(void* place, size_t) noexcept { uncounted(place); }
void operator delete[](void* place, size_t) noexcept { uncounted(place); }

namespace {

using namespace ovtrain::hevc;
using Bytes = std::vector<uint8_t>;

constexpr double SECONDS = 60;                    // per input, under the sanitizers
constexpr size_t BOUND = size_t(5) << 29;         // bytes per decoder: 2.5 GiB
constexpr size_t MOST_BYTES = 40000;              // of a stream, before it is damaged
constexpr int MOST_REPEATS = 400;                 // of a unit
constexpr int KIND_COUNT = 6;
constexpr char KINDS[KIND_COUNT][18] = {"bit flips",       "truncation",     "header flips",
                                        "spliced headers", "shuffled units", "repeated unit"};

Bytes read_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    Bytes data((std::istreambuf_iterator<char>(file)), {});
    if (data.size() > MOST_BYTES) data.resize(MOST_BYTES);
    return data;
}

// NAL units with their start codes
std::vector<Span> units_of(const Bytes& data) {
    std::vector<size_t> starts;
    for (size_t i = 0; i + 3 <= data.size(); ++i)
        if (data[i] == 0 && data[i + 1] == 0 && data[i + 2] == 1) starts.push_back(i);
    std::vector<Span> units;
    for (size_t i = 0; i < starts.size(); ++i) {
        const size_t end = i + 1 < starts.size() ? starts[i + 1] : data.size();
        units.push_back({data.data() + starts[i], end - starts[i]});
    }
    return units;
}

bool holds_header(const Span& unit) {
    const int type = unit.bytes > 3 ? unit.data[3] >> 1 : 0;
    return type >= VPS && type <= PPS;
}

class Mutator {
public:
    Mutator(unsigned seed, std::vector<Bytes> files) : random_(seed), files_(std::move(files)) {}

    Bytes next(int kind) {
        Bytes data = files_[pick(files_.size())];
        switch (kind) {
            case 0: flip(data, 0, data.size(), 1 + pick(40)); break;
            case 1: data.resize(1 + pick(data.size())); break;
            case 2: flip_headers(data); break;
            case 3: splice_headers(data); break;
            case 4: shuffle_units(data); break;
            default: repeat_unit(data); break;
        }
        return data;
    }

private:
    size_t pick(size_t count) { return size_t(random_()) % count; }

    void flip(Bytes& data, size_t from, size_t bytes, size_t count) {
        for (; bytes && count; --count) data[from + pick(bytes)] ^= uint8_t(1 << pick(8));
    }

    // Parameter sets, and the first bytes of slices
    void flip_headers(Bytes& data) {
        for (const Span& unit : units_of(data)) {
            const auto from = size_t(unit.data - data.data());
            if (holds_header(unit) ? pick(2) == 0 : pick(8) == 0)
                flip(data, from + 5, std::min<size_t>(unit.bytes - std::min<size_t>(unit.bytes, 5), 24),
                     1 + pick(4));
        }
    }

    // Parameter sets of another stream, before a unit of this one
    void splice_headers(Bytes& data) {
        const Bytes& other = files_[pick(files_.size())];
        Bytes headers;
        for (const Span& unit : units_of(other))
            if (holds_header(unit) && pick(3)) headers.insert(headers.end(), unit.data, unit.data + unit.bytes);
        if (pick(2)) flip(headers, 0, headers.size(), 1 + pick(6));
        const auto units = units_of(data);
        const auto at = units[pick(units.size())].data - data.data();
        data.insert(data.begin() + at, headers.begin(), headers.end());
    }

    // Units lost, repeated, in another order
    void shuffle_units(Bytes& data) {
        const auto units = units_of(data);
        Bytes mixed;
        for (size_t i = 0; i < units.size(); ++i) {
            const Span& unit = pick(6) ? units[i] : units[pick(units.size())];
            if (pick(10)) mixed.insert(mixed.end(), unit.data, unit.data + unit.bytes);
        }
        data = mixed.empty() ? data : mixed;
    }

    // One unit very often, in one piece: what grows with the number of units shows itself
    void repeat_unit(Bytes& data) {
        const auto units = units_of(data);
        const Span unit = units[pick(units.size())];
        const size_t most = std::min<size_t>(MOST_REPEATS, 4 * MOST_BYTES / unit.bytes + 1);
        Bytes repeated;
        for (size_t i = pick(most) + 1; i > 0; --i)
            repeated.insert(repeated.end(), unit.data, unit.data + unit.bytes);
        data.insert(data.begin() + (unit.data - data.data()), repeated.begin(), repeated.end());
    }

    std::mt19937 random_;
    std::vector<Bytes> files_;
};

struct Counts {
    long inputs = 0, pictures = 0, damaged = 0, unsupported = 0;
    double longest = 0;
};

void decode(const Bytes& data, bool skims, Counts& counts) {
    auto popped = [&counts](Decoder& decoder) {
        while (PicturePtr picture = decoder.pop()) {
            ++counts.pictures;
            counts.damaged += !picture->ok;
        }
    };
    Decoder decoder(Wanted{true, true}, {});
    int64_t number = 0;
    const auto units = units_of(data);
    // Now and then a packet holds everything.
    if (counts.inputs % 11 == 0) decoder.push({data.data(), data.size()}, number);
    for (const Span& unit : units) {
        if (skims && size_t(number) < units.size() / 2)
            decoder.skim(unit);
        else
            decoder.push(unit, number);
        ++number;
        popped(decoder);
    }
    decoder.flush();
    popped(decoder);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    std::vector<Bytes> files;
    for (int i = 3; i < argc; ++i) files.push_back(read_file(argv[i]));
    Mutator mutator(unsigned(std::atoi(argv[1])), std::move(files));
    const long wanted = std::atol(argv[2]);
    Counts counts;
    size_t most = 0;
    for (; counts.inputs < wanted; ++counts.inputs) {
        const int kind = int(counts.inputs % KIND_COUNT);
        const Bytes data = mutator.next(kind);
        const auto began = std::chrono::steady_clock::now();
        const size_t before = live;
        peak = live;
        try {
            decode(data, counts.inputs % 7 == 0, counts);
        } catch (const Unsupported&) {
            ++counts.unsupported;
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        counts.longest = std::max(counts.longest, took.count());
        most = std::max(most, peak - before);
        if (took.count() > SECONDS || peak - before > BOUND) {
            std::printf("input %ld (%s): %.1f s, %zu MiB\n", counts.inputs, KINDS[kind],
                        took.count(), (peak - before) >> 20);
            return 1;
        }
    }
    std::printf("%ld %ld %ld %ld %.3f %zu\n", counts.inputs, counts.pictures, counts.damaged,
                counts.unsupported, counts.longest, most);
    return 0;
}
