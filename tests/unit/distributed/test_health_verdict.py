"""Who is to blame, from numbers made by hand."""

from dataclasses import replace

import pytest

from ovtrain.distributed.health_check.links import rings, rounds
from ovtrain.distributed.health_check.verdict import (
    ALL_REDUCE,
    BETWEEN,
    IN_NODE,
    JOIN,
    Finding,
    Link,
    RankRow,
    bad_nodes,
    verdict,
)

HOSTS = ["a", "a", "b", "b", "c", "c"]


def rows(**speeds: float) -> list[RankRow]:
    values = {"gemm_tflops": 600.0} | speeds
    return [RankRow(r, h, r % 2, "NVIDIA H200", values, phase="done") for r, h in enumerate(HOSTS)]


def links(*slow: tuple[int, int], fault: str = "") -> list[Link]:
    made: list[Link] = []
    for kind, fast in ((IN_NODE, 300.0), (BETWEEN, 40.0)):
        for pairs in rounds(rings(HOSTS)[kind]):
            for pair in pairs:
                bad = pair in slow
                made.append(Link(*pair, kind, fast / 4 if bad else fast, fault if bad else ""))
    return made


def judge(of_rows: list[RankRow], of_links: list[Link] | None = None, **more: float):
    given = {"share": 0.5, "timeout_s": 60.0} | more
    return verdict(of_rows, links() if of_links is None else of_links, **given)


def test_equal_ranks_are_sound():
    assert judge(rows()) == []


def test_every_device_sends_and_receives_once_in_its_node_and_once_between_nodes():
    for kind, of_each in ((IN_NODE, 1), (BETWEEN, 1)):
        pairs = [pair for turn in rounds(rings(HOSTS)[kind]) for pair in turn]
        assert (
            sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == list(range(6)) * of_each
        )
        assert all((HOSTS[a] == HOSTS[b]) == (kind == IN_NODE) for a, b in pairs)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8])
def test_no_rank_has_two_links_in_one_round(length: int):
    made = rounds([list(range(length)), list(range(10, 10 + length))])
    assert sum(map(len, made)) == 2 * length
    for pairs in made:
        ends = [end for pair in pairs for end in pair]
        assert len(ends) == len(set(ends))


def test_a_single_node_has_no_links_between_nodes_and_single_ranks_none_inside():
    assert rings(["a", "a"])[BETWEEN] == []
    assert rings(["a", "b"])[IN_NODE] == []


def test_a_slow_device_is_named_with_the_median():
    found = rows()
    found[3] = replace(found[3], values={"gemm_tflops": 250.0})
    (only,) = judge(found)
    text = "rank 3 on b (GPU 1): gemm_tflops 250 TFLOP/s, the median is 600"
    assert only == Finding(3, text)
    assert bad_nodes(found, [only]) == ["b"]
    assert judge(found, share=0.4) == []


def test_devices_are_compared_with_their_like():
    found = rows()
    found[4:] = [
        replace(row, device="NVIDIA L4", values={"gemm_tflops": 90.0}) for row in found[4:]
    ]
    assert judge(found) == []
    found[5] = replace(found[5], values={"gemm_tflops": 30.0})
    assert [one.rank for one in judge(found)] == [5]


def test_of_two_ranks_the_slow_one_stands_out():
    found = [replace(row, values={"gemm_tflops": 600.0 - 400 * row.rank}) for row in rows()[:2]]
    assert [one.rank for one in judge(found, [])] == [1]


def test_all_equally_slow_ranks_show_against_the_data_sheet_alone():
    found = rows(gemm_tflops=200.0)
    assert judge(found) == []
    assert [one.rank for one in judge(found, peak_share=0.4)] == list(range(6))
    assert judge(found, peak_share=0.2) == []


def test_a_rank_with_two_slow_links_is_to_blame_for_both():
    found = judge(rows(), links((0, 2), (2, 4)))
    assert {one.rank for one in found} == {2}
    assert "link between nodes: from rank 0 to rank 2: 10 GB/s, the median is 40" in found[0].text


def test_of_a_single_bad_link_both_ends_are_suspect():
    assert {one.rank for one in judge(rows(), links((2, 3)))} == {2, 3}
    found = judge(rows(), links((2, 3), fault="5 of 9 numbers arrived wrong"), share=0.1)
    assert {one.rank for one in found} == {2, 3}
    assert "arrived wrong" in found[0].text


def test_a_rank_without_a_gpu_among_ranks_with_one_is_named():
    found = rows()
    found[1] = replace(found[1], gpu=-1, device="CPU")
    (only,) = judge(found, [])
    assert only.text == "rank 1 on a: torch sees no GPU here, other ranks have one"


def test_failures_together_are_blamed_on_who_is_silent():
    found = [row.begin(IN_NODE).failed("Connection closed by peer") for row in rows()]
    found[4] = replace(found[4], faults={}, answered=False)
    (only,) = judge(found, [])
    assert only.text.startswith("rank 4 on c (GPU 0) did not answer within 60 s")


def test_failures_together_that_nothing_explains_are_told():
    found = rows()
    found[2] = found[2].begin(JOIN).failed("DistBackendError: NCCL")
    assert [one.rank for one in judge(found, [])] == [2]
    every = [row.begin(ALL_REDUCE).failed("did not end within 60 s") for row in rows()]
    assert judge(every) == [
        Finding(None, "all-reduce failed on all ranks: did not end within 60 s")
    ]
    assert bad_nodes(every, judge(every)) == []
