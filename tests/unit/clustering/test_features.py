import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clustering.decoding import Decoder
from clustering.features import PassSettings, extract, finish
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError, MediaError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.sample import key_hash
from tests.helpers.shards import write_shards
from tests.helpers.world import ROOT, environment
from tests.unit.clustering.passes import SETTINGS, MeanTeacher
from tests.unit.clustering.shapes import write_shard

TOTAL = 46
"""Of pictures: four whole parts of ten, and six more."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(folder, "image", TOTAL, size=28, shards=3)
    return folder


@pytest.fixture(scope="session")
def straight(pictures, tmp_path_factory):
    """The folder of an undisturbed pass by one task."""
    folder = tmp_path_factory.mktemp("straight")
    one(pictures, folder)
    return folder


def quiet(line):
    pass


def one(shards, folder, teacher=None, settings=SETTINGS, say=quiet, **tasks):
    reader = ShardReader(shards)
    try:
        return extract(reader, teacher or MeanTeacher(), folder, settings, say=say, **tasks)
    finally:
        reader.close()


def start(*arguments, rank=0, size=1):
    """A task as a process of its own."""
    command = [sys.executable, "-m", "tests.unit.clustering.passes", *map(str, arguments)]
    given = environment() | {"RANK": str(rank), "WORLD_SIZE": str(size)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given, cwd=ROOT)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def broken(pictures, folder, bad):
    """A copy whose samples ``bad`` are no pictures; their checksums say otherwise, too."""
    shutil.copytree(pictures, folder)
    reader = ShardReader(folder)
    for i in bad:
        member = reader.locate(i)["jpg"]
        with open(member.path, "r+b") as tar:
            tar.seek(member.offset)
            tar.write(b"no picture")
    return folder, [reader.name(i) for i in bad]


def test_every_sample_has_its_row_in_shard_order(shards, tmp_path):
    reader = ShardReader(shards)
    made = one(shards, tmp_path, MeanTeacher("video"))
    assert made.store.array().shape == (24, 4)
    assert (made.store.keys == key_hash(reader.keys)).all()
    assert (made.store.fingerprint, made.store.teacher) == (reader.manifest.fingerprint, "mean")
    assert made.skipped_count == len(list(made.skipped())) == 0


def test_rows_are_those_of_their_samples(pictures, straight):
    reader, store = ShardReader(pictures), FeatureStore(straight)
    with Decoder(reader, MeanTeacher(), 1, 1) as decoder:
        (_, frames), *_ = decoder.batches([np.arange(TOTAL)])
    means = np.stack([frame.mean(axis=(0, 1, 2)) for frame in frames])
    assert np.abs(store.array()[:, :3] - means).max() < 0.1  # float16 below 256


def test_a_pass_leaves_its_parts_and_nothing_else(straight):
    names = [f"part-{i:05d}{end}" for i in range(5) for end in (".json", ".keys.npy", ".npy")]
    names += [f"part-{i:05d}.skipped.jsonl" for i in range(5)]
    assert sorted(files(straight)) == sorted([*names, "store.json"])
    assert [part.samples for part in FeatureStore(straight).parts] == [10, 10, 10, 10, 6]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_tasks_in_any_order_make_the_store_of_one(pictures, straight, tmp_path, order):
    made = [one(pictures, tmp_path, task=task, tasks=3) for task in order]
    assert [found is None for found in made] == [True, True, False]
    assert files(tmp_path) == files(straight)


def test_more_tasks_than_parts_do_no_harm(pictures, straight, tmp_path):
    for task in range(7):
        one(pictures, tmp_path, task=task, tasks=7)
    assert files(tmp_path) == files(straight)


def test_tasks_may_change_their_number_on_the_way(pictures, straight, tmp_path):
    assert one(pictures, tmp_path, task=1, tasks=3) is None
    teacher = MeanTeacher()
    assert one(pictures, tmp_path, teacher) is not None
    assert teacher.seen == TOTAL - 16  # parts 1 and 4 were there
    assert files(tmp_path) == files(straight)


def test_ranks_are_tasks_side_by_side(pictures, straight, tmp_path):
    ranks = [start(pictures, tmp_path, 999, rank=rank, size=2) for rank in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert "features, task 1 of 2: 20 of 20" in said[1]
    assert any("made True" in lines for lines in said)
    assert files(tmp_path) == files(straight)


def test_a_task_that_is_killed_within_a_part_goes_on_where_it_was(pictures, straight, tmp_path):
    killed = start(pictures, tmp_path, 18)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.partial"))) == 1
    assert not (tmp_path / "store.json").exists()
    lines, teacher = [], MeanTeacher()
    one(pictures, tmp_path, teacher, say=lines.append)
    assert teacher.seen == TOTAL - 18
    assert "features: 1 of 5 parts are already there" in lines
    assert "features: 8 of 10 samples of part-00001 are already there" in lines
    assert files(tmp_path) == files(straight)


def test_batches_are_the_same_wherever_a_pass_was_cut(pictures, straight, tmp_path):
    for after in (4, 3, 10, 1, 5):
        with pytest.raises(KeyboardInterrupt):
            one(pictures, tmp_path, MeanTeacher(stop_after=after))
    assert one(pictures, tmp_path).store.identity == FeatureStore(straight).identity


def test_a_pass_that_is_done_leaves_everything_as_it_is(pictures, tmp_path):
    first = one(pictures, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    teacher, lines = MeanTeacher(), []
    again = one(pictures, tmp_path, teacher, say=lines.append)
    assert again.store.identity == first.store.identity
    assert teacher.seen == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    assert lines == ["features: 5 of 5 parts are already there"]


def test_parts_that_are_there_need_no_last_task(pictures, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "f")
    (tmp_path / "f" / "store.json").unlink()
    assert finish(ShardReader(pictures), MeanTeacher(), tmp_path / "f", SETTINGS) is not None
    assert files(tmp_path / "f") == files(straight)


@pytest.mark.parametrize("finished", [False, True])
def test_features_of_another_teacher_are_replaced(pictures, tmp_path, finished):
    if finished:
        one(pictures, tmp_path, MeanTeacher(name="other"))
    else:
        with pytest.raises(KeyboardInterrupt):
            one(pictures, tmp_path, MeanTeacher(name="other", stop_after=18))
    with pytest.raises(KeyboardInterrupt):
        one(pictures, tmp_path, MeanTeacher(stop_after=18))
    with pytest.raises(LabelError, match="no features store here"):
        FeatureStore(tmp_path)
    teacher = MeanTeacher()
    one(pictures, tmp_path, teacher)
    assert teacher.seen == TOTAL - 18
    assert FeatureStore(tmp_path).teacher == "mean"
    assert not list(tmp_path.glob("*.partial"))


def test_features_of_other_pixels_with_the_same_keys_are_not_reused(shards, clips, tmp_path):
    settings = PassSettings(2, 4, 8)
    with pytest.raises(KeyboardInterrupt):
        one(shards, tmp_path / "f", MeanTeacher("video", stop_after=12), settings)
    turned = dict(zip(clips, reversed(clips.values()), strict=True))
    other = write_shard(tmp_path / "s", "video", turned)
    assert ShardReader(other).manifest.fingerprint == ShardReader(shards).manifest.fingerprint
    teacher = MeanTeacher("video")
    found = one(other, tmp_path / "f", teacher, settings)
    assert teacher.seen == 24
    alone = one(other, tmp_path / "g", MeanTeacher("video"), settings)
    assert found.store.identity == alone.store.identity


def test_other_part_sizes_leave_no_old_parts_behind(pictures, tmp_path):
    one(pictures, tmp_path)
    store = one(pictures, tmp_path, settings=PassSettings(2, 4, 40)).store
    assert [part.samples for part in store.parts] == [40, 6]
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        f"part-0000{i}{end}" for i in range(2) for end in (".keys.npy", ".npy")
    ]


@pytest.mark.parametrize("lost", [".npy", ".keys.npy", ".json"])
def test_a_part_whose_file_is_gone_or_cut_is_made_again(pictures, straight, tmp_path, lost):
    folder = shutil.copytree(straight, tmp_path / "f")
    (folder / f"part-00001{lost}").unlink()
    path = folder / f"part-00003{lost}"
    path.write_bytes(path.read_bytes()[:-8])
    teacher = MeanTeacher()
    one(pictures, folder, teacher)
    assert teacher.seen == 20
    assert files(folder) == files(straight)


def test_a_flipped_bit_in_a_part_is_named_by_verify(straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "f")
    data = bytearray((folder / "part-00002.npy").read_bytes())
    data[-1] ^= 1
    (folder / "part-00002.npy").write_bytes(data)
    with pytest.raises(LabelError, match=r"part-00002\.npy: missing or damaged"):
        FeatureStore(folder).verify()


def test_tasks_that_do_the_same_parts_by_mistake_do_no_harm(pictures, straight, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(one, pictures, tmp_path) for _ in range(3)]
        made = [run.result() for run in runs]
    found = {one.store.identity for one in made if one is not None}  # the last sees all parts
    assert found == {FeatureStore(straight).identity}
    one(pictures, tmp_path).store.verify()
    assert files(tmp_path) == files(straight)


def test_bad_samples_are_named_once_and_left_out_also_when_resumed(pictures, tmp_path):
    folder, names = broken(pictures, tmp_path / "s", [2, 17, 18])
    with pytest.raises(KeyboardInterrupt):
        one(folder, tmp_path / "f", MeanTeacher(stop_after=14))
    resumed = one(folder, tmp_path / "f")
    alone = one(folder, tmp_path / "g")
    for made in (resumed, alone):
        assert [entry.file for entry in made.skipped()] == names
        assert made.skipped_count == 3
        assert [part.skipped for part in made.store.parts] == [1, 2, 0, 0, 0]
        assert len(made.store) == len(made.store.keys) == TOTAL - 3
    assert resumed.store.identity == alone.store.identity
    assert not set(key_hash([name.partition("/")[2] for name in names])) & set(alone.store.keys)
    (line,) = (tmp_path / "f" / "part-00000.skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)) == ["file", "reason"]


def test_a_clip_that_does_not_decode_says_so(damaged, tmp_path):
    made = one(damaged, tmp_path, MeanTeacher("video"))
    (entry,) = made.skipped()
    assert entry.file == "video-000000.tar/clip-01-left"
    assert "does not decode" in entry.reason


def test_a_part_without_one_good_sample_is_empty(pictures, tmp_path):
    folder, _ = broken(pictures, tmp_path / "s", range(10, 20))
    store = one(folder, tmp_path / "f").store
    assert [part.samples for part in store.parts] == [10, 0, 10, 10, 6]
    assert len(store.array()) == 36


def test_only_bad_samples_are_an_error_that_names_the_first(tmp_path):
    write_shard(tmp_path / "s", "video", {"a": b"x", "b": b"y"})
    for _ in range(2):  # the second time all parts are there
        with pytest.raises(MediaError, match=r"not one of 2 samples .* video-000000.tar/a"):
            one(tmp_path / "s", tmp_path / "f", MeanTeacher("video"))
    assert not (tmp_path / "f" / "store.json").exists()


def test_a_clip_of_another_length_is_left_out(clips, tmp_path):
    class AllFrames(MeanTeacher):
        def indices(self, frames):
            return None

    write_shard(tmp_path / "s", "video", dict(list(clips.items())[:2]), frames=64)
    with pytest.raises(MediaError, match="holds 32 frames"):
        one(tmp_path / "s", tmp_path / "f", AllFrames("video"))


@pytest.mark.parametrize("value", [1e9, np.nan, -np.inf])
def test_a_feature_that_is_not_finite_in_float16_is_named_and_left_out(pictures, tmp_path, value):
    class FirstOfEach(MeanTeacher):
        def features(self, samples):
            found = super().features(samples)
            found[0] = value
            return found

    made = one(pictures, tmp_path, FirstOfEach())
    skipped = list(made.skipped())
    assert len(skipped) == made.skipped_count == 14  # of 3 batches in a part of 10, 2 in one of 6
    assert {entry.reason for entry in skipped} == {"its feature is not finite in float16"}
    assert np.isfinite(made.store.array()).all()


def test_a_feature_of_length_zero_is_a_feature(pictures, tmp_path):
    class Zero(MeanTeacher):
        def features(self, samples):
            return 0 * super().features(samples)

    made = one(pictures, tmp_path, Zero())
    assert (len(made.store), made.skipped_count) == (TOTAL, 0)
    assert not made.store.array().any()


def test_what_dead_processes_left_goes_with_the_last_part(pictures, tmp_path):
    old, young = tmp_path / ".part-00000.npy.1.1.tmp", tmp_path / ".part-00001.npy.1.1.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    one(pictures, tmp_path)
    assert not old.exists()
    assert young.exists()  # it may be of a task that still runs
    os.utime(young, (0, 0))
    one(pictures, tmp_path)
    assert not young.exists()


def test_a_teachers_arrays_are_kept_beside_its_features(pictures, tmp_path):
    teacher = MeanTeacher()
    teacher.arrays = {"table.npy": np.arange(5)}
    store = one(pictures, tmp_path, teacher).store
    assert (np.load(tmp_path / "table.npy") == np.arange(5)).all()
    store.verify()
    np.save(tmp_path / "table.npy", np.arange(6))
    with pytest.raises(LabelError, match=r"table\.npy: missing or damaged"):
        store.verify()


def test_decoding_keeps_a_bounded_number_of_batches_ahead(pictures, monkeypatch):
    reader, asked = ShardReader(pictures), []
    read = reader.member
    monkeypatch.setattr(reader, "member", lambda i, name: asked.append(i) or read(i, name))
    with Decoder(reader, MeanTeacher(), workers=1, batch=4) as decoder:
        batches = decoder.batches(np.arange(TOTAL)[i : i + 4] for i in range(0, TOTAL, 4))
        for taken in range(1, 4):
            next(batches)
            decoder.pool.submit(int).result()  # behind all that was handed out
            assert len(asked) <= 4 * (taken + 2)
    assert asked == sorted(asked)  # one thread reads each tar from front to back


def test_progress_ends_with_the_counts(damaged, tmp_path):
    lines: list[str] = []
    one(damaged, tmp_path, MeanTeacher("video"), say=lines.append)
    assert lines[-1].startswith("features: 24 of 24, ")
    assert lines[-1].endswith("1 skipped")
