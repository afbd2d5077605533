// NAL units out of packets (ITU-T H.265, 7.3.1, annex B; ISO/IEC 14496-15, 8.3.3.1 for hvcC).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "slice_header.h"

namespace ovtrain::hevc {

struct Span {
    const uint8_t* data = nullptr;
    size_t bytes = 0;
};

// NAL units of a packet. ``length_bytes`` 0: annex B start codes; otherwise each unit follows its
// length in so many bytes. What stands behind a damaged length is left out.
std::vector<Span> split_nals(Span packet, int length_bytes);

// 7.3.1.2; throws Damaged
NalHeader parse_nal_header(Span nal);

// The payload behind the two header bytes, without emulation prevention bytes (7.3.1.1) and
// trailing zero words. It lies in ``buffer``, with zeros behind it (Engine::PADDING).
Span extract_payload(Span nal, std::vector<uint8_t>& buffer);

// Parameter sets of an hvcC record and the size of the lengths that its samples use. Empty units
// and length_bytes 0 where it is none (annex B).
struct Configuration {
    std::vector<Span> nals;
    int length_bytes = 0;
};
Configuration parse_configuration(Span record);

}  // namespace ovtrain::hevc
