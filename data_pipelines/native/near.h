// All pairs of hashes within a Hamming distance, exactly: near.cpp says how.
#pragma once

#include <cstddef>
#include <cstdint>

// What becomes of the pairs. `a` and `b` are rows of the hashes.
class Matches {
public:
    virtual ~Matches() = default;
    virtual void match(uint32_t a, uint32_t b) = 0;
    // Whether only the components are asked for. Then pairs that `root` shows to be joined already
    // need not be found, and a row's root is the same as that of every row it is joined with.
    virtual bool components_only() const { return false; }
    virtual uint64_t root(uint32_t row) { return row; }
    // Called now and then; may throw to end the search.
    virtual void breathe() {}
};

// Equal hashes are joined in a star around the first of them, which then stands for all.
void find_near(const uint64_t* hashes, size_t count, size_t words, unsigned distance, Matches& out);
