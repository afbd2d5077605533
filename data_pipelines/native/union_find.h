// Union-find over the numbers 0 .. size-1, one array of parents and nothing else.
//
// Rem's algorithm with splicing (Dijkstra 1976; fastest in Patwary, Blair and Manne, "Experiments on
// Union-Find Algorithms for the Disjoint-Set Data Structure", SEA 2010). A parent is never greater
// than its child, so the root of a component is its smallest member.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>

template <typename Node>
class UnionFind {
public:
    explicit UnionFind(size_t size) : size_(size), parents_(new Node[size]) {
        std::iota(parents_.get(), parents_.get() + size, Node(0));
    }

    size_t size() const { return size_; }

    void unite(Node a, Node b) {
        Node* parents = parents_.get();
        while (parents[a] != parents[b]) {
            if (parents[a] < parents[b]) std::swap(a, b);
            const Node above = parents[a];
            parents[a] = parents[b];
            if (above == a) return;
            a = above;
        }
    }

    // Edges come in no order and the array is larger than the caches: ask for parents ahead of time.
    template <typename Given>
    void unite_all(const Given* edges, size_t count) {
        constexpr size_t AHEAD = 16;
        for (size_t i = 0; i < count; ++i) {
            if (i + AHEAD < count) {
                __builtin_prefetch(parents_.get() + edges[2 * (i + AHEAD)], 1);
                __builtin_prefetch(parents_.get() + edges[2 * (i + AHEAD) + 1], 1);
            }
            unite(Node(edges[2 * i]), Node(edges[2 * i + 1]));
        }
    }

    Node root(Node node) {
        Node* parents = parents_.get();
        while (parents[node] != node) node = parents[node] = parents[parents[node]];
        return node;
    }

    // The root of every number. Parents come before their children, so one pass flattens all.
    const Node* flatten() {
        for (size_t i = 0; i < size_; ++i) parents_[i] = parents_[parents_[i]];
        return parents_.get();
    }

private:
    size_t size_;
    std::unique_ptr<Node[]> parents_;
};
