// Fixed-length and Exp-Golomb codes of a raw byte sequence payload (ITU-T H.265, 7.2, 9.2), and the
// two ways a stream can be refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace ovtrain::hevc {

// The stream breaks the standard, or it is damaged.
struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The stream is legal and uses a tool that this decoder leaves out.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool legal, const char* what) {
    if (!legal) throw Damaged(what);
}

class BitReader {
public:
    BitReader() = default;
    BitReader(const uint8_t* data, size_t bytes) : data_(data), bits_(bytes * 8) {}

    // u(n), n <= 32
    uint32_t u(int n) {
        require(position_ + size_t(n) <= bits_, "a header ends early");
        uint64_t window = 0;
        const size_t first = position_ >> 3, last = (position_ + size_t(n) + 7) >> 3;
        for (size_t i = first; i < last; ++i) window = window << 8 | data_[i];
        window >>= (last << 3) - (position_ + size_t(n));
        position_ += size_t(n);
        return uint32_t(window & ((uint64_t(1) << n) - 1));
    }

    bool flag() { return u(1) != 0; }

    // ue(v), clause 9.2; ``most``: the largest value that the semantics allow
    uint32_t ue(uint32_t most = 0xFFFFFFFEu) {
        int zeros = 0;
        while (!flag()) require(++zeros <= 32, "an Exp-Golomb code has more than 32 zeros");
        const uint64_t value = ((uint64_t(1) << zeros) - 1) + (zeros ? u(zeros) : 0);
        require(value <= most, "a header value is out of range");
        return uint32_t(value);
    }

    // se(v), clause 9.2.2
    int32_t se(int32_t least = -0x7FFFFFFF, int32_t most = 0x7FFFFFFF) {
        const int64_t code = ue();
        const int64_t value = code & 1 ? (code + 1) >> 1 : -(code >> 1);
        require(value >= least && value <= most, "a header value is out of range");
        return int32_t(value);
    }

    void skip(size_t n) {
        require(position_ + n <= bits_, "a header ends early");
        position_ += n;
    }

    void align() { position_ = (position_ + 7) & ~size_t(7); }
    size_t position() const { return position_; }

    // more_rbsp_data(): whether anything stands before the trailing bits (7.2)
    bool more_rbsp_data() const {
        size_t last = bits_;
        while (last > position_ && !(data_[(last - 1) >> 3] >> (7 - ((last - 1) & 7)) & 1)) --last;
        return last > position_ + 1;
    }

private:
    const uint8_t* data_ = nullptr;
    size_t bits_ = 0;
    size_t position_ = 0;
};

}  // namespace ovtrain::hevc
