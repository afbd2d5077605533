"""All pairs of hashes within a distance are found, however the hashes are spread, and each once."""

from collections.abc import Callable

import numpy as np
import pytest

from data_pipelines.dedup.components import Components, components, near_pairs
from ovtrain.schema.errors import DuplicateError

Hashes = np.ndarray


def draw(rng: np.random.Generator, count: int, words: int) -> Hashes:
    return rng.integers(0, 2**64, (count, words), dtype=np.uint64)


def flipped(rng: np.random.Generator, hashes: Hashes, bits: int) -> Hashes:
    """With up to ``bits`` bits of each hash flipped."""
    hashes = hashes.copy()
    for _ in range(bits):
        word = rng.integers(0, hashes.shape[1], len(hashes))
        bit = rng.integers(0, 64, len(hashes), dtype=np.uint64)
        hashes[np.arange(len(hashes)), word] ^= np.uint64(1) << bit
    return hashes


def clustered(rng: np.random.Generator, count: int, words: int) -> Hashes:
    centres = draw(rng, 12, words)
    return flipped(rng, centres[rng.integers(0, 12, count)], 5)


def one_cluster(rng: np.random.Generator, count: int, words: int) -> Hashes:
    return flipped(rng, np.repeat(draw(rng, 1, words), count, axis=0), 9 * words)


def high_bits_equal(rng: np.random.Generator, count: int, words: int) -> Hashes:
    return draw(rng, count, words) & np.uint64(2**20 - 1)


def first_word_equal(rng: np.random.Generator, count: int, words: int) -> Hashes:
    hashes = flipped(rng, draw(rng, count // 2, words).repeat(2, axis=0), 3)[:count]
    hashes[:, 0] = 7
    return hashes


def few_values(rng: np.random.Generator, count: int, words: int) -> Hashes:
    return draw(rng, 20, words)[rng.integers(0, 20, count)]


def in_a_row(rng: np.random.Generator, count: int, words: int) -> Hashes:
    """Each one bit from the next."""
    hashes = draw(rng, 1, words).repeat(count, axis=0)
    for i in range(1, count):
        hashes[i] = flipped(rng, hashes[i - 1 : i], 1)[0]
    return hashes


SPREADS = [draw, clustered, one_cluster, high_bits_equal, first_word_equal, few_values, in_a_row]


def found_pairs(hashes: Hashes, distance: int, chunk: int = 64) -> np.ndarray:
    chunks = [np.zeros((0, 2), np.uint32)]
    near_pairs(hashes, distance, chunks.append, chunk)
    assert all(0 < len(part) <= chunk for part in chunks[1:])
    return np.concatenate(chunks)


def brute_force(hashes: Hashes, distance: int) -> np.ndarray:
    apart = sum(np.bitwise_count(word[:, None] ^ word).astype(np.int16) for word in hashes.T)
    return np.argwhere(np.triu(apart <= distance, 1))


def sorted_pairs(pairs: np.ndarray) -> np.ndarray:
    return np.sort(pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1])


def joined(hashes: Hashes, distance: int) -> np.ndarray:
    found = Components(len(hashes))
    found.add_near(hashes, np.arange(len(hashes)), distance)
    return found.labels()


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(
    ("words", "distance"), [(1, 0), (1, 1), (1, 3), (1, 8), (1, 14), (2, 9), (4, 12), (4, 32)]
)
def test_near_pairs_are_those_of_brute_force(
    spread: Callable[..., Hashes], words: int, distance: int
):
    hashes = spread(np.random.default_rng(distance), 1200, words)
    distinct, first = np.unique(hashes, axis=0, return_index=True)
    order = np.sort(first)
    found = found_pairs(hashes, distance, chunk=1000)
    expected = order[brute_force(hashes[order], distance)]
    between = found[np.isin(found, order).all(axis=1)]
    np.testing.assert_array_equal(sorted_pairs(between), sorted_pairs(expected))
    assert len(found) - len(between) == len(hashes) - len(distinct)
    every = components(len(hashes), [brute_force(hashes, distance)])
    np.testing.assert_array_equal(components(len(hashes), [found]), every)
    np.testing.assert_array_equal(joined(hashes, distance), every)


def test_crowded_buckets_are_searched_by_other_bands():
    """More hashes than are compared one by one agree in whole words; planted pairs are found."""
    rng = np.random.default_rng(0)
    hashes = draw(rng, 30_000, 4)
    hashes[rng.random(len(hashes)) < 0.4, 0] = 0
    hashes[:, 1] &= np.uint64(3)
    planted = rng.permutation(len(hashes)).reshape(-1, 2)[:5000]
    hashes[planted[:, 1]] = flipped(rng, hashes[planted[:, 0]], 20)
    pairs = found_pairs(hashes, 20, chunk=1 << 20)
    found = sorted_pairs(pairs)
    assert (np.diff(found) > 0).all()
    assert np.isin(sorted_pairs(np.sort(planted, axis=1)), found).all()
    apart = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(axis=1)
    assert apart.max() <= 20
    np.testing.assert_array_equal(joined(hashes, 20), components(len(hashes), [pairs]))


@pytest.mark.timeout(60)
def test_many_equal_or_tightly_clustered_hashes_cost_no_pairs():
    """Both have 4 * 10^10 pairs, hours of comparing."""
    count = 300_000
    assert not joined(np.zeros((count, 4), np.uint64), 32).any()
    rng = np.random.default_rng(0)
    centres = draw(rng, 2, 4)
    side = rng.integers(0, 2, count)
    side[:2] = (0, 1)
    np.testing.assert_array_equal(joined(flipped(rng, centres[side], 8), 32), side)


def test_an_empty_set_and_one_hash_have_no_pairs():
    for count in (0, 1):
        hashes = np.zeros((count, 4), np.uint64)
        assert len(found_pairs(hashes, 32)) == 0
        np.testing.assert_array_equal(joined(hashes, 32), np.arange(count))


@pytest.mark.parametrize(
    ("hashes", "distance", "message"),
    [
        (np.zeros((3, 1), np.int64), 4, "int64"),
        (np.zeros(3, np.uint64), 4, r"\(3,\)"),
        (np.zeros((3, 0), np.uint64), 0, "no words"),
        (np.zeros((3, 1), np.uint64), -1, "distance -1 of hashes of 64 bits"),
        (np.zeros((3, 1), np.uint64), 64, "distance 64 of hashes of 64 bits"),
    ],
)
def test_hashes_and_distances_out_of_range_are_refused(hashes: Hashes, distance: int, message: str):
    with pytest.raises(DuplicateError, match=message):
        near_pairs(hashes, distance, list[np.ndarray]().append)
    with pytest.raises(DuplicateError, match=message):
        Components(3).add_near(hashes, np.arange(3), distance)


def test_a_node_out_of_range_is_refused():
    with pytest.raises(DuplicateError, match="hash 1 names node 3 of 3"):
        Components(3).add_near(np.zeros((2, 1), np.uint64), np.array([0, 3]), 1)
    with pytest.raises(DuplicateError, match="differ in number"):
        Components(3).add_near(np.zeros((2, 1), np.uint64), np.array([0]), 1)


def test_an_error_of_the_sink_ends_the_search():
    def full(_: np.ndarray) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        near_pairs(np.zeros((9, 1), np.uint64), 1, full)
