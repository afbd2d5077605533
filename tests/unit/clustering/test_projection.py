import numpy as np
import pytest

from clustering.projection import ProjectedTeacher, random_signs
from clustering.teachers import store_files
from ovtrain.schema.errors import ConfigError


class Points:
    """Each sample's first pixels are the feature."""

    def __init__(self, width):
        self.name, self.width, self.kind, self.arrays = f"points{width}", width, "image", {}

    def indices(self, frames):
        return [0]

    def features(self, samples):
        return np.stack(samples).astype(np.float32)


def unit(count, width, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_distances_are_kept_within_the_stated_error():
    """Pairs of 60 points, half of them near each other: relative standard deviation of squared
    distances sqrt(2 / width) at most."""
    width, to = 2048, 512
    near = unit(1, width) + 0.3 * unit(30, width, 1)
    points = np.vstack([unit(30, width, 2), near / np.linalg.norm(near, axis=1, keepdims=True)])
    found = points @ random_signs(width, to) / to**0.5

    def squares(x):
        return ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(len(x), 1)]

    apart = squares(found) / squares(points) - 1
    assert abs(apart.mean()) < 0.02
    assert apart.std() < 1.2 * (2 / to) ** 0.5  # 1,770 pairs of 60 points are not independent
    made = ProjectedTeacher(Points(width), to).features(list(points))
    assert np.linalg.norm(made, axis=1) == pytest.approx(1)
    cosines = (made @ made.T - points @ points.T)[np.triu_indices(60, 1)]
    assert np.abs(cosines).max() < 5 / to**0.5


def test_signs_are_either_with_equal_chance():
    signs = random_signs(400, 70)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 0.03
    assert abs((random_signs(400, 71)[:, :70] * signs).mean()) < 0.03


def test_these_signs_were_drawn_before():
    """They are a function of their shape: others would not fit the features of older stores."""
    assert random_signs(2, 12).tolist() == [
        [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, 1, -1],
        [1, 1, 1, -1, 1, 1, 1, -1, 1, -1, 1, -1],
    ]


def test_names_tell_projections_apart():
    names = [ProjectedTeacher(Points(64), width).name for width in (8, 9)]
    assert len({*names, ProjectedTeacher(Points(65), 8).name, Points(64).name}) == 4
    assert names[0].startswith("points64:projection8-")


def test_what_has_no_length_stays_zero():
    made = ProjectedTeacher(Points(64), 8).features([np.zeros(64), np.ones(64)])
    assert not made[0].any()
    assert np.isfinite(made).all()


def test_the_matrix_is_stored_and_a_damaged_one_is_replaced(tmp_path):
    teacher = ProjectedTeacher(Points(64), 8)
    digests = store_files(teacher, tmp_path)
    assert (np.load(tmp_path / "projection.npy") == random_signs(64, 8)).all()
    (tmp_path / "projection.npy").write_bytes(b"")
    assert store_files(teacher, tmp_path) == digests
    assert (np.load(tmp_path / "projection.npy") == random_signs(64, 8)).all()


@pytest.mark.parametrize("width", [64, 65])
def test_a_projection_that_saves_nothing_is_an_error_that_names_both(width):
    with pytest.raises(ConfigError, match=rf"projection={width}: .* are 64 wide; allowed: 1 to 63"):
        ProjectedTeacher(Points(64), width)
