#include "nal.h"

#include <cstring>

#include "cabac.h"

namespace ovtrain::hevc {

namespace {

constexpr size_t CONFIGURATION_HEADER = 22;  // bytes before numOfArrays

// First start code (00 00 01) at or behind ``from``, or the end
size_t find_start_code(Span packet, size_t from) {
    for (size_t i = from; i + 3 <= packet.bytes; ++i) {
        const auto* hit = static_cast<const uint8_t*>(
            std::memchr(packet.data + i + 2, 1, packet.bytes - i - 2));
        if (!hit) return packet.bytes;
        i = size_t(hit - packet.data) - 2;
        if (packet.data[i] == 0 && packet.data[i + 1] == 0) return i;
    }
    return packet.bytes;
}

std::vector<Span> split_annex_b(Span packet) {
    std::vector<Span> found;
    size_t start = find_start_code(packet, 0);
    while (start + 3 < packet.bytes) {
        const size_t first = start + 3, next = find_start_code(packet, first);
        size_t last = next;
        while (last > first && packet.data[last - 1] == 0) --last;
        if (last > first) found.push_back({packet.data + first, last - first});
        start = next;
    }
    return found;
}

size_t big_endian(const uint8_t* data, int bytes) {
    size_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | data[i];
    return value;
}

}  // namespace

std::vector<Span> split_nals(Span packet, int length_bytes) {
    if (length_bytes == 0) return split_annex_b(packet);
    std::vector<Span> found;
    size_t at = 0;
    const auto prefix = size_t(length_bytes);
    while (at + prefix < packet.bytes) {
        const size_t bytes = big_endian(packet.data + at, length_bytes);
        at += prefix;
        if (bytes > packet.bytes - at) break;
        if (bytes) found.push_back({packet.data + at, bytes});
        at += bytes;
    }
    return found;
}

NalHeader parse_nal_header(Span nal) {
    require(nal.bytes >= 2 && nal.data[0] < 128, "not a NAL unit");
    NalHeader header;
    header.type = nal.data[0] >> 1;
    header.layer = (nal.data[0] & 1) << 5 | nal.data[1] >> 3;
    header.temporal_id = (nal.data[1] & 7) - 1;
    require(header.temporal_id >= 0, "a NAL unit without temporal layer");
    return header;
}

Span extract_payload(Span nal, std::vector<uint8_t>& buffer) {
    buffer.clear();
    buffer.reserve(nal.bytes + Engine::PADDING);
    const uint8_t* data = nal.data + 2;
    const size_t bytes = nal.bytes - 2;
    size_t copied = 0;
    for (size_t i = 2; i < bytes;) {
        const auto* hit = static_cast<const uint8_t*>(std::memchr(data + i, 3, bytes - i));
        if (!hit) break;
        i = size_t(hit - data);
        if (data[i - 1] == 0 && data[i - 2] == 0) {
            buffer.insert(buffer.end(), data + copied, data + i);
            copied = i + 1;
            i += 3;  // the two zeros of the next one must be new
        } else {
            ++i;
        }
    }
    buffer.insert(buffer.end(), data + copied, data + bytes);
    while (!buffer.empty() && buffer.back() == 0) buffer.pop_back();
    const size_t size = buffer.size();
    buffer.insert(buffer.end(), Engine::PADDING, 0);
    return {buffer.data(), size};
}

Configuration parse_configuration(Span record) {
    Configuration found;
    const uint8_t* data = record.data;
    const bool start_code = record.bytes >= 4 && data[0] == 0 && data[1] == 0 &&
                            (data[2] == 1 || (data[2] == 0 && data[3] == 1));
    if (start_code) {
        found.nals = split_nals(record, 0);
        return found;
    }
    if (record.bytes <= CONFIGURATION_HEADER) return found;
    found.length_bytes = (data[21] & 3) + 1;
    size_t at = CONFIGURATION_HEADER + 1;
    for (int arrays = data[CONFIGURATION_HEADER]; arrays > 0 && at + 3 <= record.bytes; --arrays) {
        size_t units = big_endian(data + at + 1, 2);
        for (at += 3; units > 0 && at + 2 <= record.bytes; --units) {
            const size_t bytes = big_endian(data + at, 2);
            at += 2;
            if (bytes > record.bytes - at) return found;
            if (bytes) found.nals.push_back({data + at, bytes});
            at += bytes;
        }
    }
    return found;
}

}  // namespace ovtrain::hevc
