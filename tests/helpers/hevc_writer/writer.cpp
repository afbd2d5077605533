// Headers in, streams out. Standard input holds records: four numbers (bytes, coding tree blocks,
// seed, surprise in thousandths; 32 bits, little endian) and a NAL unit with its two header bytes, not
// escaped. A unit with coding tree blocks is a slice segment header, up to its byte_alignment(); data of
// so many blocks are drawn behind it. Standard output gets the annex B stream. Ends with 3 where a draw
// broke the standard.

#include <cstdio>
#include <cstring>
#include <string>

#include "decoder.h"

using namespace ovtrain::hevc;
using Bytes = std::vector<uint8_t>;

static Bytes with_start_code(const Bytes& unit) {
    Bytes found = {0, 0, 0, 1};
    int zeros = 0;
    for (const uint8_t byte : unit) {
        if (zeros >= 2 && byte <= 3) {
            found.push_back(3);
            zeros = 0;
        }
        found.push_back(byte);
        zeros = byte ? 0 : zeros + 1;
    }
    return found;
}

int main() {
    Decoder decoder(Wanted{true, true}, {});
    uint32_t record[4];
    while (std::fread(record, 4, 4, stdin) == 4) {
        Bytes unit(record[0]);
        if (std::fread(unit.data(), 1, unit.size(), stdin) != unit.size()) return 2;
        Writer& to = writer();
        to.bytes.clear();
        to.align();
        to.ctbs_left = long(record[1]);
        to.random.seed(record[2]);
        to.surprise = record[3] / 1000.0;
        Bytes asked = unit;
        if (record[1]) asked.insert(asked.end(), 16, 0xFF);
        const Bytes pushed = with_start_code(asked);
        decoder.push({pushed.data(), pushed.size()}, 0);
        bool ok = decoder.last_fault().empty();
        while (const PicturePtr picture = decoder.pop()) ok = ok && picture->ok;
        if (!ok || to.ctbs_left) {
            std::fprintf(stderr, "%s (%ld blocks left)\n", decoder.last_fault().c_str(), to.ctbs_left);
            return 3;
        }
        unit.insert(unit.end(), to.bytes.begin(), to.bytes.end());
        const Bytes written = with_start_code(unit);
        std::fwrite(written.data(), 1, written.size(), stdout);
    }
    return 0;
}
