"""Union-find: the partition is a plain reference's, from memory or from files; edges that are none
are refused by name."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.dedup.components import Components, components, edge_chunks
from ovtrain.schema.errors import DuplicateError
from tests.helpers.world import ROOT

NODES = 2_000


def reference(nodes: int, edges: Iterable[np.ndarray]) -> np.ndarray:
    """Smallest member of each node's component, by breadth-first search."""
    beside: list[list[int]] = [[] for _ in range(nodes)]
    for chunk in edges:
        for a, b in chunk.tolist():
            beside[a].append(b)
            beside[b].append(a)
    labels = np.full(nodes, -1)
    for start in range(nodes):
        waiting = [start] if labels[start] < 0 else []
        while waiting:
            node = waiting.pop()
            if labels[node] < 0:
                labels[node] = start
                waiting += beside[node]
    return labels


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64, np.int32, ">i8"])
@pytest.mark.parametrize("density", [0, 0.1, 0.4, 0.6, 1, 4])
def test_random_graphs_have_the_reference_partition(density: float, dtype: str):
    rng = np.random.default_rng(int(10 * density))
    edges = rng.integers(0, NODES, (int(density * NODES), 2)).astype(dtype)
    chunks = np.array_split(np.concatenate([edges, edges[:50], edges[:50, ::-1]]), 3)
    np.testing.assert_array_equal(components(NODES, chunks), reference(NODES, chunks))


def test_a_large_random_graph_has_scipys_partition():
    sparse = pytest.importorskip("scipy.sparse")
    edges = np.random.default_rng(0).integers(0, 10**6, (10**6, 2))
    graph = sparse.coo_matrix((np.ones(len(edges), bool), edges.T), (10**6, 10**6))
    _, theirs = sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(theirs, return_index=True)
    np.testing.assert_array_equal(components(10**6, [edges]), first[theirs])


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_chain_is_one_component_in_any_order(shuffled: bool):
    length = 100_000
    chain = np.stack([np.arange(length - 1), np.arange(1, length)], axis=1)[::-1]
    if shuffled:
        chain = np.random.default_rng(0).permutation(chain)
    assert not components(length, [chain]).any()
    cut = chain[chain.max(axis=1) != 70_000]
    np.testing.assert_array_equal(components(length, [cut]), 70_000 * (np.arange(length) >= 70_000))


def test_stars_loops_and_nodes_without_edges():
    star = np.stack([np.full(999, 999), np.arange(999)], axis=1)
    assert not components(1000, [star]).any()
    np.testing.assert_array_equal(components(5, [np.array([[3, 3], [4, 4]])]), np.arange(5))
    np.testing.assert_array_equal(components(4, []), np.arange(4))
    assert components(0, [np.zeros((0, 2), np.int64)]).shape == (0,)


def test_components_grow_as_edges_come():
    found = Components(4)
    found.add(np.array([[1, 3]]))
    np.testing.assert_array_equal(found.labels(), [0, 1, 2, 1])
    found.add(np.array([[0, 3]]))
    np.testing.assert_array_equal(found.labels(), [0, 0, 2, 0])


def test_edges_in_files_are_those_in_memory(tmp_path: Path):
    edges = np.random.default_rng(0).integers(0, NODES, (NODES // 2, 2))
    np.save(tmp_path / "a.npy", edges[:700])
    np.save(tmp_path / "b.npy", np.asfortranarray(edges[700:].astype(np.uint32)))
    np.save(tmp_path / "none.npy", edges[:0])
    files = [tmp_path / name for name in ("a.npy", "none.npy", "b.npy")]
    np.testing.assert_array_equal(components(NODES, files), components(NODES, [edges]))
    assert [len(chunk) for chunk in edge_chunks(files[0], 300)] == [300, 300, 100]


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_node_out_of_range_is_named_and_its_chunk_left_out(bad: int, dtype: type, tmp_path: Path):
    edges = np.array([[0, 1], [2, 3], [4, bad]]).astype(dtype)
    shown = str(edges[2, 1])
    found = Components(10)
    with pytest.raises(DuplicateError, match=f"edge 2 names node {shown} of 10"):
        found.add(edges)
    np.testing.assert_array_equal(found.labels(), np.arange(10))
    np.save(tmp_path / "edges.npy", edges)
    with pytest.raises(DuplicateError, match=f"edges.npy.*edge 2 names node {shown} of 10"):
        found.add(tmp_path / "edges.npy")


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        (np.zeros((3, 2)), "float64"),
        (np.zeros((3, 2), bool), "bool"),
        (np.zeros((3, 3), np.int64), r"\(3, 3\)"),
        (np.zeros(4, np.int64), r"\(4,\)"),
    ],
)
def test_arrays_that_are_no_edges_are_refused(edges: np.ndarray, found: str, tmp_path: Path):
    with pytest.raises(DuplicateError, match=found):
        components(9, [edges])
    np.save(tmp_path / "edges.npy", edges)
    with pytest.raises(DuplicateError, match=f"edges.npy.*{found}"):
        components(9, [tmp_path / "edges.npy"])


def test_files_that_are_no_arrays_are_refused(tmp_path: Path):
    np.save(tmp_path / "whole.npy", np.zeros((1000, 2), np.int64))
    whole = (tmp_path / "whole.npy").read_bytes()
    np.savez(tmp_path / "archive.npz", whole)
    contents = {"cut": whole[:-8], "empty": b"", "text": b"1 2\n3 4\n", "header": whole[:40]}
    for name, content in contents.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
    for name in (*(f"{name}.npy" for name in contents), "archive.npz"):
        with pytest.raises(DuplicateError, match=name):
            components(9, [tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        components(9, [tmp_path / "gone.npy"])


WITHOUT = """
import sys
sys.modules["data_pipelines._native"] = None  # what cannot be imported
from data_pipelines.dedup import components, duplicates, embeddings, hashing
components.Components(3)
"""


def test_without_the_extension_all_imports_and_the_error_says_what_to_do():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT
    )
    assert "DuplicateError: data_pipelines._native: is not built; install ovtrain" in found.stderr
