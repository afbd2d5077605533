// The arithmetic decoder (ITU-T H.265, 9.3.4.3) and its context variables (9.3.2.2).
//
// ``value_`` is ivlOffset with ``ahead_`` more bits of the stream below it, so that a comparison
// with ``range_ << ahead_`` decides a bin and renormalisation only lowers ``ahead_``; bytes are
// fetched several at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

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
extern const uint8_t RANGE_LPS[64][4];  // table 9-46
// Table 9-47: of (state << 1 | mps), after its less [0] and its more [1] probable bin
extern const std::array<std::array<uint8_t, 2>, 128> NEXT_STATE;
}  // namespace tables

class Cabac {
public:
    ContextState contexts;

    // 9.3.2.5; the contexts stay as they are. The data must stay where they are.
    void start(const uint8_t* data, size_t bytes);

    // Start again at a byte of the same data; the contexts stay.
    void restart(size_t byte);

    int bin(int context) {
        if (ahead_ < 8) fetch();
        uint16_t& model = contexts.models[size_t(context)];
        const uint32_t lps = tables::RANGE_LPS[model >> 1][range_ >> 6 & 3];
        range_ -= lps;
        const uint64_t limit = uint64_t(range_) << ahead_;
        int value = model & 1;
        if (value_ < limit) {
            model = tables::NEXT_STATE[size_t(model)][1];
            const int shift = range_ < 256;
            range_ <<= shift;
            ahead_ -= shift;
        } else {
            value ^= 1;
            value_ -= limit;
            model = tables::NEXT_STATE[size_t(model)][0];
            const int shift = __builtin_clz(lps) - 23;
            range_ = lps << shift;
            ahead_ -= shift;
        }
        return value;
    }

    int bypass() {
        if (ahead_ < 8) fetch();
        const uint64_t limit = uint64_t(range_) << --ahead_;
        const int value = value_ >= limit;
        value_ -= value ? limit : 0;
        return value;
    }

    // ``count`` bypass bins, the first one highest; count <= 32
    uint32_t bypass(int count) {
        uint32_t bins = 0;
        while (count-- > 0) bins = bins << 1 | uint32_t(bypass());
        return bins;
    }

    // 9.3.4.3.5; a 1 ends a substream or precedes PCM samples, and the last bit read is then the
    // stop bit before the alignment
    bool terminate() {
        if (ahead_ < 8) fetch();
        range_ -= 2;
        const uint64_t limit = uint64_t(range_) << ahead_;
        if (value_ >= limit) return true;
        const int shift = range_ < 256;
        range_ <<= shift;
        ahead_ -= shift;
        return false;
    }

    // Place in the data: behind the 9 bits of ivlOffset and all shifts.
    size_t bits_read() const { return fetched_ * 8 - size_t(ahead_); }

    // Whether more bits were taken than there are: the data are damaged.
    bool overrun() const { return bits_read() > bytes_ * 8 + 16; }

    const uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    void fetch();

    const uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
    size_t fetched_ = 0;  // bytes, those behind the end included (they read as zero)
    uint64_t value_ = 0;
    uint32_t range_ = 510;
    int ahead_ = 0;
};

}  // namespace ovtrain::hevc
