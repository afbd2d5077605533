"""metrics.jsonl is exact after a resume, and a torn line harms nothing."""

from pathlib import Path
from threading import Event, Thread

import pytest

from ovtrain.observability import sinks
from ovtrain.observability.history import Tail, column, read_lines, read_rows
from ovtrain.observability.logger import close_handlers, job_logger
from ovtrain.observability.sinks import JsonlSink
from ovtrain.observability.throughput import Throughput


def test_rows_after_the_resumed_step_are_dropped_and_written_again(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        sink.write({"step": step, "loss": float(step)})
    sink.truncate_after(3)
    sink.write({"step": 4, "loss": 40.0})
    sink.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_torn_last_line_is_not_glued_to_the_next_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    sink = JsonlSink(path)
    sink.write({"step": 2, "loss": 1.0})
    sink.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_a_growing_file_is_read_on_and_a_rewritten_one_anew(tmp_path):
    path, tail = tmp_path / "metrics.jsonl", Tail()
    sink = JsonlSink(path)
    for step in range(1, 4):
        sink.write({"step": step})
    assert [row["step"] for row in tail.read(path)] == [1, 2, 3]
    with open(path, "a") as handle:
        handle.write('{"step": 4}\n{"st')
    assert [row["step"] for row in tail.read(path)] == [1, 2, 3, 4]
    with open(path, "a") as handle:
        handle.write('ep": 5}\n')
    assert [row["step"] for row in tail.read(path)] == [1, 2, 3, 4, 5]
    sink.truncate_after(2)
    sink.write({"step": 3, "again": 1})
    sink.close()
    assert tail.read(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1}]


def test_a_file_rewritten_in_place_and_longer_is_read_anew(tmp_path):
    path, tail = tmp_path / "metrics.jsonl", Tail()
    path.write_text('{"step": 1, "time": 1}\n{"step": 2, "time": 2}\n')
    assert len(tail.read(path)) == 2
    again = '{"step": 1, "time": 1}\n{"step": 2, "time": 7}\n{"step": 3, "time": 8}\n'
    path.write_text(again)  # the same inode
    assert [row["time"] for row in tail.read(path)] == [1, 7, 8]


def test_a_row_of_another_thread_survives_a_resumption(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 1})
    started, threads = Event(), []

    def read(path):
        threads.append(Thread(target=lambda: (started.set(), sink.write({"step": 1, "late": 1}))))
        threads[0].start()
        started.wait(5)
        return read_lines(path)

    monkeypatch.setattr(sinks, "read_lines", read)
    sink.truncate_after(1)
    threads[0].join(5)
    sink.close()
    assert read_rows(path) == [{"step": 1}, {"step": 1, "late": 1}]


def test_column_leaves_out_what_is_not_a_number():
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}, {"step": 3}]
    assert column(rows, "loss") == [(2.0, 0.5)]


def test_throughput_counts_one_window_at_a_time():
    now = [0.0]
    window = Throughput(clock=lambda: now[0])
    with window.waiting():
        now[0] = 0.5
    window.add(samples=8, tokens=2048, flops=4e9)
    now[0] = 2.0
    rates = window.read()
    assert rates == {
        "samples_per_s": 4,
        "tokens_per_s": 1024,
        "flops_per_s": 2e9,
        "data_wait": 0.25,
        "data_wait_ms": 500,
        "data_wait_ms_max": 500,
    }
    now[0] = 3.0
    assert window.read()["samples_per_s"] == 0


def test_log_lines_carry_the_rank_and_go_to_the_ranks_file(tmp_path, capsys):
    logger = job_logger("test-ranks", rank=1, world_size=2, folder=tmp_path)
    logger.info("ready")
    close_handlers(logger)
    assert "[1/2] ready" in capsys.readouterr().err
    assert "[1/2] ready" in (tmp_path / "rank-00001.log").read_text()


def test_a_file_that_cannot_be_written_is_named_and_closing_it_says_no_more():
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        sink.write({"step": 1})
    sink.close()
