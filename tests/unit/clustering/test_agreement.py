"""Numbers of agreement: by hand, against a dense reference, and on stores."""

import numpy as np
import pytest
from scipy.special import comb
from scipy.stats import contingency as scipy_contingency
from scipy.stats import entropy

from clustering.agreement import Contingency, overlap, sharing_pairs
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore


def of(a, b):
    return Contingency.of(np.array(a), np.array(b))


def test_the_same_partition_under_other_names_agrees_wholly():
    table = of([0, 0, 1, 1, 2], [7, 7, 3, 3, 0])
    assert (table.nmi, table.ari, table.purity) == (pytest.approx(1), pytest.approx(1), 1)


def test_values_worked_by_hand():
    # Cells 2, 1, 1, 2: pairs together 1 + 0 + 0 + 1 = 2; rows and columns 3 + 3 pairs each of 15.
    table = of([0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 1])
    assert table.ari == pytest.approx((2 - 6 * 6 / 15) / (6 - 6 * 6 / 15))
    # I = ln 2 - H(1/3, 2/3); both entropies are ln 2.
    inside = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    assert table.nmi == pytest.approx(1 - inside / np.log(2))
    assert table.purity == pytest.approx(4 / 6)


def test_independent_partitions_have_nothing_in_common():
    table = of([0, 0, 1, 1], [0, 1, 0, 1])
    assert table.nmi == pytest.approx(0)
    assert table.ari == pytest.approx((0 - 2 * 2 / 6) / (2 - 2 * 2 / 6))  # below chance: -1/2


@pytest.mark.parametrize(("a", "b"), [([0, 0, 0], [1, 1, 1]), ([0], [0]), ([0, 1, 2], [2, 1, 0])])
def test_trivial_partitions_that_are_equal_agree(a, b):
    assert (of(a, b).nmi, of(a, b).ari) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_sparse_table_is_the_dense_one(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 30, 500), rng.integers(0, 11, 500)
    b[:250] = a[:250] % 11
    dense = scipy_contingency.crosstab(a, b).count
    shares, rows, columns = dense / 500, dense.sum(axis=1), dense.sum(axis=0)
    mutual = entropy(rows / 500) + entropy(columns / 500) - entropy(shares.ravel())
    expected = comb(rows, 2).sum() * comb(columns, 2).sum() / comb(500, 2)
    most = (comb(rows, 2).sum() + comb(columns, 2).sum()) / 2
    table = of(a, b)
    assert table.nmi == pytest.approx(2 * mutual / (entropy(rows / 500) + entropy(columns / 500)))
    assert table.ari == pytest.approx((comb(dense, 2).sum() - expected) / (most - expected))
    assert table.purity == dense.max(axis=1).sum() / 500


def write(folder, rows, keys=None, classes=100):
    keys = keys or [f"k{i}" for i in range(len(rows))]
    LabelStore.build(keys, [np.array(r, np.int32) for r in rows], classes, "p").write(folder)
    return folder


def rings(count=400, top=3):
    """Sample i near center i // 8 of 50, then near the next ones."""
    return [[(i // 8 + k) % 50 for k in range(top)] for i in range(count)]


def test_renamed_clusters_agree_wholly_and_chance_does_not(tmp_path):
    name = np.random.default_rng(0).permutation(50)
    a = write(tmp_path / "a", rings())
    b = write(tmp_path / "b", [name[row].tolist() for row in rings()])
    found = overlap(a, b)
    assert found["samples"] == 400
    assert (found["nmi"], found["ari"], found["shared"]) == (pytest.approx(1), pytest.approx(1), 1)
    assert abs(found["ari_permuted"]) < 0.03
    assert found["nmi_permuted"] < 0.75  # 400 samples in 50 clusters: high by chance
    assert found["shared_permuted"] < 0.2  # 5 of 50 centers are 2 or fewer away
    assert "top" not in found


def test_unrelated_clusters_agree_as_chance_does(tmp_path):
    rng = np.random.default_rng(1)
    a = write(tmp_path / "a", rings())
    b = write(tmp_path / "b", [rings()[i] for i in rng.permutation(400)])
    found = overlap(a, b, same_centers=True)
    for name in ("nmi", "ari", "shared", "same", "top"):
        assert found[name] == pytest.approx(found[f"{name}_permuted"], abs=0.03)


def test_labels_of_the_same_centers_are_compared_by_number(tmp_path):
    a = write(tmp_path / "a", [[1, 2, 3, 4]] * 8)
    b = write(tmp_path / "b", [[1, 2, 9, 3]] * 4 + [[2, 1]] * 4)
    found = overlap(a, b, same_centers=True)
    assert found["same"] == 0.5
    assert found["top"] == pytest.approx((0.75 + 0.5) / 2)


def test_samples_are_joined_by_key(tmp_path):
    keys = [f"k{i}" for i in range(400)]
    a = write(tmp_path / "a", rings())
    b = write(tmp_path / "b", rings()[::-1][:300] + [[]] * 100, keys[::-1])
    found = overlap(a, b)
    assert (found["samples"], found["ari"]) == (300, pytest.approx(1))


def test_a_part_of_many_samples_tells_as_much(tmp_path):
    a, b = write(tmp_path / "a", rings()), write(tmp_path / "b", rings())
    found = overlap(a, b, most=200)
    assert (found["samples"], found["ari"]) == (200, pytest.approx(1))


def test_strangers_are_an_error(tmp_path):
    a, b = write(tmp_path / "a", rings()), write(tmp_path / "b", [[1]], ["other"])
    with pytest.raises(LabelError, match="no labelled sample in common"):
        overlap(a, b)


def test_pairs_share_a_label_and_are_two_samples():
    labels = np.array([[0, 1], [1, 2], [2, 3], [4, -1], [-1, -1]], dtype=np.int32)
    one, other = sharing_pairs(labels, 500, seed=0)
    pairs = {tuple(sorted(pair)) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert pairs == {(0, 1), (1, 2)}


def test_labels_that_nobody_shares_give_no_pairs(tmp_path):
    a = write(tmp_path / "a", [[i] for i in range(9)])
    assert overlap(a, a)["shared"] is None
