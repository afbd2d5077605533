"""Slow ranks and large ones are named, sound worlds are not, nobody is named all the time."""

import pytest
import torch

from ovtrain.observability.ranks import RankRow, RankWatch, outliers, peak_memory_mib, rank_metrics


def rows(own: list[float], memory: list[float] | None = None) -> list[RankRow]:
    held = memory or [1000.0] * len(own)
    return [RankRow(o, 0.1 * o, m) for o, m in zip(own, held, strict=True)]


def watch(size: int, quiet: int = 3) -> RankWatch:
    return RankWatch([f"node{rank // 2}" for rank in range(size)], 1.3, 1.2, quiet)


def test_the_metrics_name_the_slowest_and_the_largest_rank():
    found = rank_metrics(rows([10, 40, 12, 11], [5, 6, 9, 7]))
    assert found == {
        "rank_ms_max": 40,
        "rank_ms_median": 11,
        "slowest_rank": 1,
        "memory_mib_max": 9,
        "memory_rank": 2,
    }


def test_a_row_travels_as_numbers():
    row = RankRow(1.5, 0.5, 300.0)
    assert RankRow(*row.numbers()) == row


@pytest.mark.parametrize("own", [[10.0], [10.0, 12.9], [10.0, 11.0, 12.0, 12.9]])
def test_a_sound_world_warns_of_nobody(own: list[float]):
    assert watch(len(own)).warnings(rows(own)) == []


def test_of_two_ranks_the_slower_one_stands_out():
    assert outliers([10.0, 20.0], 1.3) == [1]
    assert outliers([20.0, 10.0], 1.3) == [0]


def test_the_slow_rank_is_named_with_its_host_and_its_wait_for_data():
    (line,) = watch(4).warnings(rows([10, 10, 10, 25]))
    assert line == (
        "rank 3 on node1 is slow: 25 ms of its own per step, 2.5 times the median of 10; "
        "2 ms of it waiting for data"
    )


def test_memory_has_a_line_of_its_own():
    (line,) = watch(3).warnings(rows([10, 10, 10], [1000, 1000, 1300]))
    assert line == "rank 2 on node1 held 1300 MiB of memory, 1.3 times the median of 1000"


def test_one_line_names_the_worst_and_counts_the_others():
    (line,) = watch(8).warnings(rows([10, 10, 50, 10, 10, 60, 10, 10]))
    assert line.startswith("rank 5 on node2 is slow: 60 ms")
    assert line.endswith("(also rank 2)")


def test_a_lasting_outlier_is_named_again_only_after_the_quiet_windows():
    ranks = watch(4, quiet=3)
    named = [bool(ranks.warnings(rows([10, 10, 10, 25]))) for _ in range(7)]
    assert named == [True, False, False, True, False, False, True]


def test_another_outlier_is_named_while_the_first_one_lasts():
    ranks = watch(4)
    ranks.warnings(rows([10, 10, 10, 25]))
    (line,) = ranks.warnings(rows([20, 10, 10, 25]))
    assert line.startswith("rank 0 on node0 is slow")


def test_the_memory_of_a_cpu_rank_is_that_of_its_process():
    before = peak_memory_mib(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // 4)
    assert held.sum() > 0
    assert 50 < before < 1e5
    assert peak_memory_mib(torch.device("cpu")) >= before
