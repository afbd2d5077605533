import numpy as np
import pytest

from clustering.features import extract
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import MediaError
from ovtrain.schema.sample import key_hash
from tests.unit.clustering.shapes import write_shard


class MeanTeacher:
    """Mean colour; counts its samples and can be told to fail or to overflow."""

    name, width, kind = "mean", 3, "video"

    def __init__(self, fail_after=10**9, scale=1.0):
        self.seen, self.fail_after, self.scale = 0, fail_after, scale

    def indices(self, frames):
        return [0, frames - 1]

    def features(self, samples):
        if self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(samples)
        return np.stack([s.mean(axis=(0, 1, 2)) for s in samples]).astype(np.float32) * self.scale


def quiet(line):
    pass


def test_every_sample_has_its_row_in_shard_order(shards, tmp_path):
    reader = ShardReader(shards)
    store = extract(reader, MeanTeacher(), tmp_path, workers=2, say=quiet).store
    assert store.features.shape == (24, 3)
    assert store.features.dtype == np.float16
    assert (store.keys == key_hash(reader.keys)).all()
    assert store.fingerprint == reader.manifest.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "features.npy",
        "keys.npy",
        "store.json",
    ]


def test_an_interrupted_pass_goes_on_where_it_stopped(shards, tmp_path):
    reader = ShardReader(shards)
    with pytest.raises(KeyboardInterrupt):
        extract(reader, MeanTeacher(fail_after=16), tmp_path / "a", workers=1, say=quiet)
    second = MeanTeacher()
    resumed = extract(reader, second, tmp_path / "a", workers=1, say=quiet).store
    straight = extract(reader, MeanTeacher(), tmp_path / "b", workers=1, say=quiet).store
    assert second.seen == 8
    assert (resumed.features == straight.features).all()


def test_a_partial_pass_of_another_teacher_is_not_reused(shards, tmp_path):
    reader = ShardReader(shards)
    with pytest.raises(KeyboardInterrupt):
        extract(reader, MeanTeacher(fail_after=16), tmp_path, workers=1, say=quiet)
    other = MeanTeacher()
    other.name = "other"
    extract(reader, other, tmp_path, workers=1, say=quiet)
    assert other.seen == 24


def test_a_partial_pass_over_other_pixels_with_the_same_keys_is_not_reused(shards, clips, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(ShardReader(shards), MeanTeacher(fail_after=16), tmp_path / "f", 1, quiet)
    turned = dict(zip(clips, reversed(clips.values()), strict=True))
    write_shard(tmp_path / "s", "video", turned)
    reader, teacher = ShardReader(tmp_path / "s"), MeanTeacher()
    assert reader.manifest.fingerprint == ShardReader(shards).manifest.fingerprint
    found = extract(reader, teacher, tmp_path / "f", 1, quiet).store
    assert teacher.seen == 24
    straight = extract(reader, MeanTeacher(), tmp_path / "g", 1, quiet).store
    assert (found.features == straight.features).all()


def test_a_bad_sample_is_named_and_left_out(damaged, tmp_path):
    reader = ShardReader(damaged)
    made = extract(reader, MeanTeacher(), tmp_path, say=quiet)
    assert [s.file for s in made.skipped] == ["video-000000.tar/clip-01-left"]
    assert "does not decode" in made.skipped[0].reason
    assert len(made.store.keys) == 23
    assert key_hash(["clip-01-left"])[0] not in made.store.keys


def test_a_feature_too_large_for_float16_is_left_out_not_stored_as_infinity(shards, tmp_path):
    class OneLarge(MeanTeacher):
        def features(self, samples):
            found = super().features(samples)
            found[0] = 1e9
            return found

    made = extract(ShardReader(shards), OneLarge(), tmp_path, say=quiet)
    assert len(made.skipped) == 2  # first of each chunk of 16
    assert "not finite" in made.skipped[0].reason
    assert np.isfinite(made.store.features).all()


def test_a_clip_of_another_length_is_left_out(clips, tmp_path):
    class AllFrames(MeanTeacher):
        def indices(self, frames):
            return None

    write_shard(tmp_path / "s", "video", dict(list(clips.items())[:2]), frames=64)
    with pytest.raises(MediaError, match="holds 32 frames"):
        extract(ShardReader(tmp_path / "s"), AllFrames(), tmp_path / "f", say=quiet)


def test_only_bad_samples_are_an_error_that_names_the_first(tmp_path):
    write_shard(tmp_path / "s", "video", {"a": b"x", "b": b"y"})
    with pytest.raises(MediaError, match=r"not one of 2 samples .* video-000000.tar/a"):
        extract(ShardReader(tmp_path / "s"), MeanTeacher(), tmp_path / "f", say=quiet)


def test_progress_ends_with_the_counts(damaged, tmp_path):
    lines: list[str] = []
    extract(ShardReader(damaged), MeanTeacher(), tmp_path, say=lines.append)
    assert lines[-1].startswith("features: 24 of 24, ")
    assert lines[-1].endswith("1 skipped")
