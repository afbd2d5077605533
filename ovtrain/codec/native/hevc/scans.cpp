#include "scans.h"

#include <array>

namespace ovtrain::hevc {

namespace {

struct Orders {
    std::array<std::array<std::array<Position, 64>, 4>, 3> table{};

    Orders() {
        for (int log2_size = 0; log2_size < 4; ++log2_size) {
            const int side = 1 << log2_size;
            fill_diagonal(table[0][size_t(log2_size)], side);
            for (int i = 0; i < side * side; ++i) {
                const auto line = uint8_t(i / side), place = uint8_t(i % side);
                table[1][size_t(log2_size)][size_t(i)] = {place, line};
                table[2][size_t(log2_size)][size_t(i)] = {line, place};
            }
        }
        // Horizontal and vertical scans of 8x8 run through 4x4 sub-blocks (6.5.4, 7.3.8.11): the
        // order of the sub-blocks themselves is that of a 2x2 block.
    }

    // 6.5.3: up-right
    static void fill_diagonal(std::array<Position, 64>& order, int side) {
        size_t i = 0;
        for (int sum = 0; sum < 2 * side - 1; ++sum)
            for (int y = sum; y >= 0; --y)
                if (y < side && sum - y < side) order[i++] = {uint8_t(sum - y), uint8_t(y)};
    }
};

}  // namespace

const Position* scan_order(Scan scan, int log2_size) {
    static const Orders orders;
    return orders.table[size_t(scan)][size_t(log2_size)].data();
}

}  // namespace ovtrain::hevc
