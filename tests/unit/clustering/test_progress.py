import pytest

from clustering.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_line_every_two_seconds_with_rate_and_time_left():
    lines, clock = [], Clock()
    progress = Progress("features", 1000, lines.append, clock)
    for _ in range(50):
        clock.now += 0.1
        progress.step(10, 1)
    assert len(lines) == 2
    assert lines[0].startswith("features: 200 of 1000, 100.0/s, 0% waiting for data, 20 skipped")
    assert lines[0].endswith(", 0:00:08 left")


def test_the_last_line_comes_at_once_and_has_no_time_left():
    lines, clock = [], Clock()
    progress = Progress("features", 5, lines.append, clock)
    with progress.waiting():
        clock.now += 0.5
    clock.now += 0.5
    progress.step(5, 0)
    assert lines == ["features: 5 of 5, 5.0/s, 50% waiting for data, 0 skipped"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(9.6, "0:00:10"), (3723, "1:02:03"), (183723, "2 d 03:02:03")]
)
def test_durations_are_read_at_a_glance(seconds, said):
    assert duration(seconds) == said
