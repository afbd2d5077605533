import re

import numpy as np
import pytest

from clustering.teachers import files_digest, open_teacher, store_files, uniform_indices
from ovtrain.config.cluster import ClusterConfig


def test_frames_are_the_middles_of_equal_spans():
    assert uniform_indices(64, 8) == [4, 12, 20, 28, 36, 44, 52, 60]
    assert uniform_indices(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert uniform_indices(5, 1) == [2]


def test_the_descriptor_gives_the_same_rows_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 255, (16, 56, 56, 3), dtype=np.uint8) for _ in range(5)]
    one, many = (
        open_teacher(ClusterConfig(workers=workers), "video").features(samples)
        for workers in (1, 3)
    )
    assert (one == many).all()


def test_the_descriptor_needs_no_files(tmp_path):
    assert store_files(open_teacher(ClusterConfig(), "image"), tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_weights_that_share_their_beginning_have_another_digest(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(bytes(2 << 20))
    b.write_bytes(bytes((2 << 20) - 1) + b"\1")
    assert files_digest([a]) != files_digest([b])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher": "ovtrain"}, "teacher=ovtrain needs teacher_dir"),
        ({"frame_dims": 512}, "frame_dims=512 .* teacher=descriptor sees a clip at once; use 0"),
        ({"teacher": "ovtrain", "teacher_dir": "x", "frame_dims": 9}, "teacher=ovtrain sees"),
        ({"projection": 8}, "projection=8: the descriptor's lengths mean something"),
        ({"projection": -1}, "projection=-1"),
        ({"frames": 0}, "frames=0"),
        ({"part_samples": 0}, "part_samples=0"),
    ],
)
def test_a_setting_that_a_teacher_cannot_follow_is_a_problem(settings, said):
    problems = ClusterConfig(clusters=10, **settings).problems()
    assert any(re.search(said, problem) for problem in problems), problems


@pytest.mark.parametrize("teacher", ["clip", "ovtrain"])
def test_settings_that_fit_are_no_problem(teacher):
    dims = 512 if teacher == "clip" else 0
    config = ClusterConfig(teacher, "x", frame_dims=dims, projection=1024, clusters=10)
    assert config.problems() == []
