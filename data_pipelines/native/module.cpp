// data_pipelines._native: components of a graph whose edges stream by, and near pairs of hashes.
// data_pipelines/dedup explains both. Arrays are checked here, the GIL is released, and errors that
// a caller can cause are ValueErrors.

#include "near.h"
#include "union_find.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <limits>
#include <string>
#include <variant>
#include <vector>

namespace nb = nanobind;

namespace {

template <typename T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::object numpy_copy(const T* data, std::initializer_list<size_t> shape) {
    size_t size = 1;
    for (const size_t extent : shape) size *= extent;
    auto* copy = new T[size];
    nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    std::copy_n(data, size, copy);
    return nb::ndarray<nb::numpy, T>(copy, shape, owner).cast();
}

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

template <typename Given>
void check_nodes(const Given* nodes, size_t count, size_t size, size_t per_row, const char* row) {
    for (size_t i = 0; i < count; ++i)
        if (uint64_t(nodes[i]) >= size)
            refuse(std::string(row) + " " + std::to_string(i / per_row) + " names node " +
                   std::to_string(nodes[i]) + " of " + std::to_string(size));
}

void check_hashes(const Table<uint64_t>& hashes, int distance) {
    if (hashes.shape(1) == 0) refuse("hashes have no words");
    if (hashes.shape(0) > std::numeric_limits<uint32_t>::max()) refuse("more than 2^32 - 1 hashes");
    if (distance < 0 || uint64_t(distance) >= 64 * hashes.shape(1))
        refuse("distance " + std::to_string(distance) + " of hashes of " +
               std::to_string(64 * hashes.shape(1)) + " bits");
}

void let_signals_in() {
    nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

template <typename Node>
class Joined : public Matches {
public:
    Joined(UnionFind<Node>& sets, const int64_t* nodes) : sets_(sets), nodes_(nodes) {}
    void match(uint32_t a, uint32_t b) override { sets_.unite(Node(nodes_[a]), Node(nodes_[b])); }
    bool components_only() const override { return true; }
    uint64_t root(uint32_t row) override { return sets_.root(Node(nodes_[row])); }
    void breathe() override { let_signals_in(); }

private:
    UnionFind<Node>& sets_;
    const int64_t* nodes_;
};

class Handed : public Matches {
public:
    Handed(nb::callable sink, size_t most) : sink_(std::move(sink)), most_(most) {}
    void match(uint32_t a, uint32_t b) override {
        edges_.push_back(std::min(a, b));
        edges_.push_back(std::max(a, b));
        if (edges_.size() >= 2 * most_) flush();
    }
    void breathe() override { let_signals_in(); }
    void flush() {
        nb::gil_scoped_acquire acquire;
        if (!edges_.empty()) sink_(numpy_copy(edges_.data(), {edges_.size() / 2, 2}));
        edges_.clear();
    }

private:
    nb::callable sink_;
    size_t most_;
    std::vector<uint32_t> edges_;
};

void near_pairs(Table<uint64_t> hashes, int distance, nb::callable sink, size_t most) {
    check_hashes(hashes, distance);
    Handed handed(std::move(sink), std::max<size_t>(most, 1));
    nb::gil_scoped_release release;
    find_near(hashes.data(), hashes.shape(0), hashes.shape(1), unsigned(distance), handed);
    handed.flush();
}

class Components {
public:
    explicit Components(size_t size) : sets_(narrow(0)) {
        if (size <= std::numeric_limits<uint32_t>::max())
            sets_ = narrow(size);
        else
            sets_ = UnionFind<uint64_t>(size);
    }

    template <typename Given>
    void add(Table<Given> edges) {
        if (edges.shape(1) != 2) refuse("edges need two columns");
        const size_t count = edges.shape(0);
        nb::gil_scoped_release release;
        std::visit(
            [&](auto& sets) {
                check_nodes(edges.data(), 2 * count, sets.size(), 2, "edge");
                sets.unite_all(edges.data(), count);
            },
            sets_);
    }

    void add_near(Table<uint64_t> hashes, Column<int64_t> nodes, int distance) {
        check_hashes(hashes, distance);
        if (nodes.size() != hashes.shape(0)) refuse("hashes and nodes differ in number");
        nb::gil_scoped_release release;
        std::visit([&](auto& sets) { join_near(sets, hashes, nodes, unsigned(distance)); }, sets_);
    }

    nb::object labels() {
        return std::visit(
            [](auto& sets) { return numpy_copy(sets.flatten(), {sets.size()}); }, sets_);
    }

private:
    static UnionFind<uint32_t> narrow(size_t size) { return UnionFind<uint32_t>(size); }

    template <typename Node>
    static void join_near(UnionFind<Node>& sets, const Table<uint64_t>& hashes,
                          const Column<int64_t>& nodes, unsigned distance) {
        check_nodes(nodes.data(), nodes.size(), sets.size(), 1, "hash");
        Joined<Node> joined(sets, nodes.data());
        find_near(hashes.data(), hashes.shape(0), hashes.shape(1), distance, joined);
    }

    std::variant<UnionFind<uint32_t>, UnionFind<uint64_t>> sets_;
};

}  // namespace

NB_MODULE(_native, m) {
    nb::class_<Components>(m, "Components")
        .def(nb::init<size_t>(), nb::arg("size"))
        .def("add", &Components::add<uint32_t>, nb::arg("edges").noconvert())
        .def("add", &Components::add<int64_t>, nb::arg("edges").noconvert())
        .def("add", &Components::add<uint64_t>, nb::arg("edges").noconvert())
        .def("add_near", &Components::add_near, nb::arg("hashes"), nb::arg("nodes"),
             nb::arg("distance"))
        .def("labels", &Components::labels);
    m.def("near_pairs", &near_pairs, nb::arg("hashes"), nb::arg("distance"), nb::arg("sink"),
          nb::arg("most"));
}
