#include "scans.h"

#include <array>

namespace ovtrain::hevc {

namespace {

struct Orders {
    std::array<std::array<std::array<Position, 64>, 4>, 3> table{};
    std::array<std::array<std::array<uint8_t, 64>, 4>, 3> place{};  // by y << log2_size | x

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
        for (size_t scan = 0; scan < 3; ++scan)
            for (size_t log2_size = 0; log2_size < 4; ++log2_size)
                for (size_t i = 0; i < size_t(1) << 2 * log2_size; ++i) {
                    const Position p = table[scan][log2_size][i];
                    place[scan][log2_size][size_t(p.y << log2_size | p.x)] = uint8_t(i);
                }
    }

    // 6.5.3: up-right
    static void fill_diagonal(std::array<Position, 64>& order, int side) {
        size_t i = 0;
        for (int sum = 0; sum < 2 * side - 1; ++sum)
            for (int y = sum; y >= 0; --y)
                if (y < side && sum - y < side) order[i++] = {uint8_t(sum - y), uint8_t(y)};
    }
};

const Orders ORDERS;

}  // namespace

const Position* scan_order(Scan scan, int log2_size) {
    return ORDERS.table[size_t(scan)][size_t(log2_size)].data();
}

int scan_place(Scan scan, int log2_size, int x, int y) {
    return ORDERS.place[size_t(scan)][size_t(log2_size)][size_t(y << log2_size | x)];
}

}  // namespace ovtrain::hevc
