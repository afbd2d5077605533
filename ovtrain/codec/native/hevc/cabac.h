// The arithmetic decoder (ITU-T H.265, 9.3.4.3) and its context variables (9.3.2.2).
//
// ``value`` is ivlOffset with ``ahead`` more bits of the stream below it, so that a comparison with
// ``range << ahead`` decides a bin and renormalisation only lowers ``ahead``; bytes are fetched
// several at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bits.h"

namespace ovtrain::hevc {

// First context of each syntax element; the order and the counts are those of table 9-4.
enum Context : int {
    SAO_MERGE = 0,
    SAO_TYPE = 1,
    SPLIT_CU = 2,
    TRANSQUANT_BYPASS = 5,
    CU_SKIP = 6,
    CU_QP_DELTA = 9,
    PRED_MODE = 11,
    PART_MODE = 12,
    PREV_INTRA_LUMA = 16,
    INTRA_CHROMA = 17,
    MERGE_FLAG = 18,
    MERGE_INDEX = 19,
    INTER_PRED_IDC = 20,
    REF_INDEX = 25,
    MVD_GREATER0 = 27,
    MVD_GREATER1 = 28,
    MVP_FLAG = 29,
    ROOT_CBF = 30,
    SPLIT_TRANSFORM = 31,
    CBF_LUMA = 34,
    CBF_CHROMA = 36,
    TRANSFORM_SKIP = 41,
    EXPLICIT_RDPCM = 43,
    EXPLICIT_RDPCM_DIR = 45,
    LAST_X = 47,
    LAST_Y = 65,
    CODED_SUB_BLOCK = 83,
    SIGNIFICANT = 87,
    GREATER1 = 131,
    GREATER2 = 155,
    RES_SCALE_ABS = 161,
    RES_SCALE_SIGN = 169,
    CHROMA_QP_OFFSET_FLAG = 171,
    CHROMA_QP_OFFSET_INDEX = 172,
    CONTEXT_COUNT = 173
};

// Context variables, and the Rice statistics that live and are stored with them (9.3.2.4).
struct ContextState {
    // pStateIdx << 1 | valMps. Not bytes: writing a byte may change anything, as far as a compiler
    // knows, and would keep the decoder's state out of registers.
    std::array<uint16_t, CONTEXT_COUNT> models{};
    std::array<uint8_t, 4> rice{};                // StatCoeff

    // 9.3.2.2; init_type 0 (I), 1, 2
    void reset(int init_type, int slice_qp);
};

namespace tables {
// By context variable (state << 1 | mps): bytes 0-3 are the four rangeTabLps (table 9-46), byte 4 is
// the variable after a probable bin, byte 5 after the other one (table 9-47).
extern const std::array<uint64_t, 128> TRANSITIONS;
}  // namespace tables

// What a terminating bin may end.
enum class Ending { slice_segment, substream, before_pcm };

// Tests put an engine here that writes a stream by answering the decoder's questions.
#ifdef OVTRAIN_ENGINE
#include OVTRAIN_ENGINE
#else

// The arithmetic decoder's registers. Loops that read many bins work on a copy: it has no address
// that anything else could know, and stays in the machine's registers.
struct Engine {
    const uint8_t* data = nullptr;  // PADDING zeros follow the last byte
    size_t bytes = 0;
    size_t fetched = 0;  // bytes, those behind the end included (they read as zero)
    uint64_t value = 0;
    uint32_t range = 510;
    int ahead = 0;

    static constexpr size_t PADDING = 8;

    void fetch() {
        // 24 bits at most are held, so that 40 more fit.
        uint64_t word = 0;
        std::memcpy(&word, data + (fetched < bytes ? fetched : bytes), 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        value = value << 40 | word >> 24;
        fetched += 5;
        ahead += 40;
    }

    // 9.3.4.3.2
    int bin(uint16_t& model) {
        if (ahead < 8) fetch();
        const uint64_t transition = tables::TRANSITIONS[model];
        const uint32_t lps = uint32_t(transition >> (range >> 3 & 24)) & 255;
        range -= lps;
        const uint64_t limit = uint64_t(range) << ahead;
        int bin = model & 1;
        if (value < limit) {
            model = transition >> 32 & 255;
            const int shift = range < 256;
            range <<= shift;
            ahead -= shift;
        } else {
            bin ^= 1;
            value -= limit;
            model = uint16_t(transition >> 40);
            const int shift = __builtin_clz(lps) - 23;
            range = lps << shift;
            ahead -= shift;
        }
        return bin;
    }

    // The same without a branch: where the bin decides over no branch behind it either, a bin that
    // cannot be predicted costs no more than another. Both outcomes are made ready before the
    // comparison says which one it is.
    int even_bin(uint16_t& model) {
        if (ahead < 8) fetch();
        const uint64_t transition = tables::TRANSITIONS[model];
        const uint32_t lps = uint32_t(transition >> (range >> 3 & 24)) & 255;
        const uint32_t mps = range - lps;
        const uint64_t limit = uint64_t(mps) << ahead;
        const uint32_t mps_shift = mps >> 8 ^ 1, lps_shift = uint32_t(__builtin_clz(lps)) - 23;
        const uint32_t mps_range = mps << mps_shift, lps_range = lps << lps_shift;
        const uint32_t mps_model = transition >> 32 & 255, lps_model = uint32_t(transition >> 40);
        const uint64_t less = uint64_t(0) - uint64_t(value >= limit);
        const auto mask = uint32_t(less);
        value -= limit & less;
        range = mps_range ^ ((mps_range ^ lps_range) & mask);
        ahead -= int(mps_shift ^ ((mps_shift ^ lps_shift) & mask));
        const int bin = (model ^ int(mask)) & 1;
        model = uint16_t(mps_model ^ ((mps_model ^ lps_model) & mask));
        return bin;
    }

    // 9.3.4.3.4
    int bypass() {
        if (ahead < 8) fetch();
        const uint64_t limit = uint64_t(range) << --ahead;
        const uint64_t one = uint64_t(0) - uint64_t(value >= limit);
        value -= limit & one;
        return int(one & 1);
    }

    // ``count`` bypass bins, the first one highest; count <= 16. Halving the range n times asks
    // for the n bits of a quotient.
    uint32_t bypass(int count) {
        const uint32_t bins = peek() >> (16 - count);
        take(bins, count);
        return bins;
    }

    // The next 16 bypass bins; then take as many of them as were meant.
    uint32_t peek() {
        if (ahead < 16) fetch();
        return uint32_t(value >> (ahead - 16)) / range;
    }
    void take(uint32_t bins, int count) {
        ahead -= count;
        value -= uint64_t(bins) * range << ahead;
    }

    // 9.3.4.3.5; a 1 ends what is asked for, and the last bit read is then the stop bit before the
    // alignment
    bool terminate(Ending) {
        if (ahead < 8) fetch();
        range -= 2;
        const uint64_t limit = uint64_t(range) << ahead;
        if (value >= limit) return true;
        const int shift = range < 256;
        range <<= shift;
        ahead -= shift;
        return false;
    }

    // Start behind the alignment and so many bits that are not arithmetic code (9.3.2.5).
    void restart_behind(size_t bits) {
        const size_t byte = (bits_read() + 7) / 8 + (bits + 7) / 8;
        require(byte < bytes, "slice data end early");
        restart(byte);
    }

    void restart(size_t byte) {
        fetched = byte;
        value = 0;
        range = 510;
        ahead = -9;
        fetch();
        require(value >> ahead < range, "an arithmetic code starts out of range");
    }

    // Place in the data: behind the 9 bits of ivlOffset and all shifts.
    size_t bits_read() const { return fetched * 8 - size_t(ahead); }

    // Whether more bits were taken than there are: the data are damaged.
    bool overrun() const { return bits_read() > bytes * 8 + 16; }

    // Behind the end of a slice segment: the last bit read was rbsp_slice_segment_trailing_bits'
    // stop bit, and zeros follow to the end. Throws Damaged.
    void check_end() const {
        const size_t bits = bits_read();
        require(bits <= bytes * 8, "slice data end early");
        const uint8_t last = data[(bits - 1) / 8];
        const int behind = int(7 - (bits - 1) % 8);
        require((last >> behind & 1) == 1 && (last & ((1 << behind) - 1)) == 0,
                "slice data do not end in their stop bit");
        for (size_t i = (bits + 7) / 8; i < bytes; ++i)
            require(data[i] == 0, "something follows the slice data");
    }
};

#endif

class Cabac {
public:
    ContextState contexts;
    Engine engine;

    // Start at the first byte; the contexts stay as they are. ``data`` must stay where they are,
    // with Engine::PADDING zeros behind them.
    void start(const uint8_t* data, size_t bytes) {
        engine.data = data;
        engine.bytes = bytes;
        engine.restart(0);
    }

    int bin(int context) { return engine.bin(contexts.models[size_t(context)]); }
    int bypass() { return engine.bypass(); }
    uint32_t bypass(int count) { return engine.bypass(count); }
    bool terminate(Ending ending) { return engine.terminate(ending); }
};

}  // namespace ovtrain::hevc
