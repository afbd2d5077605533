// Coefficient scans (ITU-T H.265, 6.5.3 - 6.5.5).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ovtrain::hevc {

struct Position {
    uint8_t x, y;
};

enum class Scan : uint8_t { diagonal = 0, horizontal = 1, vertical = 2 };

// Positions of a (1 << log2_size) square, log2_size 0 to 3. A traverse scan is not needed: it is
// of palette blocks only.
const Position* scan_order(Scan scan, int log2_size);

// Where (x, y) stands in that order.
int scan_place(Scan scan, int log2_size, int x, int y);

inline const Position* diagonal_scan(int log2_size) {
    return scan_order(Scan::diagonal, log2_size);
}

}  // namespace ovtrain::hevc
