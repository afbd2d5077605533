"""The loader: one global stream of samples, whatever the number of ranks, workers or restarts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import Loader, StepBatch
from ovtrain.data.views import IMAGE, TILING
from ovtrain.schema.errors import (
    CheckpointError,
    ConfigError,
    LabelError,
    ManifestError,
    MediaError,
)
from ovtrain.schema.sample import key_hash
from tests.helpers.training import typed_config, world

Sample = tuple[int, int, int, bytes, bytes, tuple[int, ...]]


def unpacked(batch: PackedBatch) -> list[Sample]:
    """(source, key, view, patches, positions, labels) of each sample, byte for byte."""
    found: list[Sample] = []
    for i in range(batch.samples):
        at = slice(int(batch.cu_seqlens[i]), int(batch.cu_seqlens[i + 1]))
        labels = batch.labels[int(batch.label_offsets[i]) : int(batch.label_offsets[i + 1])]
        found.append(
            (
                int(batch.source[i]),
                int(batch.key[i]),
                int(batch.view[i]),
                batch.patches[at].numpy().tobytes(),
                batch.positions[at].numpy().tobytes(),
                tuple(labels.tolist()),
            )
        )
    return found


def read(config: TrainConfig, steps: int, ranks: int = 1, state=None):
    """``steps`` global batches as sorted samples, and the state after them."""
    batches: list[list[Sample]] = [[] for _ in range(steps)]
    after = {}
    for rank in range(ranks):
        loader = Loader(config, world(rank, ranks))
        if state is not None:
            loader.load_state_dict(state)
        for step in range(steps):
            batch: StepBatch = next(loader)
            batches[step] += [s for micro in batch.micro for s in unpacked(micro)]
        after = loader.state_dict()
        loader.close()
    return [sorted(batch) for batch in batches], after


@pytest.fixture(scope="module")
def config(setup_folder: Path) -> TrainConfig:
    return typed_config(setup_folder, global_batch=7)


@pytest.fixture(scope="module")
def straight(config: TrainConfig):
    return read(config, 12)[0]  # 48 clips and 36 pictures of 24: into the second and third epoch


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_global_stream(config, straight, ranks):
    assert read(config, 4, ranks)[0] == straight[:4]


def test_accumulation_and_workers_change_nothing(config, straight):
    run = replace(config.run, micro_batch=2)
    data = replace(config.data, workers=3, prefetch=1)
    assert read(replace(config, run=run, data=data), 3)[0] == straight[:3]


def test_a_resumed_stream_goes_on_exactly_on_another_world_size(config, straight):
    _, state = read(config, 5, ranks=2)
    assert state == {"video": 20, "image": 15}
    assert read(config, 7, ranks=3, state=state)[0] == straight[5:]


def test_the_clip_cache_changes_nothing(config, straight, tmp_path):
    cached = replace(config, data=replace(config.data, cache_dir=str(tmp_path)))
    for _ in range(2):  # written by the first pass, read by the second
        assert read(cached, 2)[0] == straight[:2]
    assert list(tmp_path.glob("*/*.npy"))


def test_the_state_does_not_count_what_was_only_read_ahead(config):
    deep = replace(config, data=replace(config.data, prefetch=4))
    assert read(deep, 1)[1] == {"video": 4, "image": 3}


def test_another_seed_is_another_stream(config, straight):
    other = replace(config, run=replace(config.run, seed=1))
    assert read(other, 1)[0] != straight[:1]


def test_video_views_hold_their_shares(straight):
    """48 clips are three blocks of 16: 24 codec, 18 frames, 6 tiling."""
    views = [sample[2] for batch in straight for sample in batch]
    assert [views.count(view) for view in range(4)] == [24, 18, 6, 36]


def test_labels_are_those_of_the_sample(config, straight):
    loader = Loader(config, world())
    for source in loader.sources:
        labels = {int(h.view("int64")): source.labels.lookup(h).tolist() for h in source.hashes}
        for sample in (s for batch in straight for s in batch if s[0] == source.number):
            assert list(sample[5]) == labels[sample[1]]
    loader.close()


def test_other_sources_cannot_resume(config):
    loader = Loader(config, world())
    with pytest.raises(CheckpointError, match=r"read \['audio'\]; allowed: \['image', 'video'\]"):
        loader.load_state_dict({"audio": 3})
    loader.close()


@pytest.fixture
def copy(setup_folder: Path, tmp_path: Path) -> Path:
    """A set-up of its own, to be damaged."""
    shutil.copytree(setup_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def damage(folder: Path, kind: str, payload: bytes, new: bytes) -> str:
    """Overwrite the first occurrence of ``payload`` in the source's first tar; the sizes stay."""
    tar = sorted((folder / kind).glob("*.tar"))[0]
    data = tar.read_bytes()
    at = data.index(payload)
    tar.write_bytes(data[:at] + new + data[at + len(new) :])
    return tar.name


@pytest.mark.parametrize(
    ("kind", "payload", "new"),
    [("video", b"ftyp", b"\0" * 64), ("image", b"\xff\xd8\xff", b"\0" * 64)],
    ids=["clip", "picture"],
)
def test_a_corrupt_sample_is_replaced_named_and_counted(copy: Path, kind, payload, new):
    tar = damage(copy, kind, payload, new)
    loader = Loader(typed_config(copy, global_batch=8), world())
    batches = [next(loader) for _ in range(6)]  # one epoch of each source
    loader.close()
    (bad,) = [b for batch in batches for b in batch.bad]
    assert bad.name == f"{tar}/{kind}-0-0000"
    assert bad.source == kind
    assert bad.reason.startswith({"video": "does not decode (", "image": "not a readable"}[kind])
    places = [
        (micro, i)
        for batch in batches
        for micro in batch.micro
        for i in range(micro.samples)
        if micro.key[i] == 0
    ]
    ((micro, i),) = places
    assert micro.label_offsets[i + 1] == micro.label_offsets[i]
    assert (int(micro.view[i]), int(micro.cu_seqlens[i + 1] - micro.cu_seqlens[i])) == (IMAGE, 1)
    key = key_hash([f"{kind}-0-0000"])[0].view("int64")
    assert not any(key in m.key for batch in batches for m in batch.micro)


def test_energies_of_another_shape_are_a_bad_sample(copy: Path):
    damage(copy, "video", b"\x93NUMPY", b"\0NUMPY")
    loader = Loader(typed_config(copy, "data.views={codec: 1, frames: 0, tiling: 0}"), world())
    bad = [b for _ in range(6) for b in next(loader).bad]
    loader.close()
    assert len(bad) == 1
    assert bad[0].reason.startswith("energy is damaged (energy.npy: ")


def test_only_bad_samples_stop_the_run(copy: Path):
    for kind in ("video", "image"):
        for tar in (copy / kind).glob("*.tar"):
            tar.write_bytes(bytes(tar.stat().st_size))
    loader = Loader(typed_config(copy, "data.max_bad_in_a_row=5"), world())
    with pytest.raises(MediaError, match=r"5 unreadable samples in a row.*ovtrain data verify"):
        next(loader)
    loader.close()


def test_a_tar_cut_short_after_the_start_costs_its_samples_only(copy: Path):
    config = typed_config(copy, global_batch=8)
    loader = Loader(config, world())
    for kind in ("video", "image"):
        tar = sorted((copy / kind).glob("*.tar"))[1]
        tar.write_bytes(tar.read_bytes()[:1024])
    bad = [b for _ in range(6) for b in next(loader).bad]
    loader.close()
    assert {b.name.split("-")[0] for b in bad} == {"video", "image"}
    assert all("cut short" in b.reason for b in bad)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.clip_frames=6"], "clips of 8 frames, 28 x 28; allowed: data.clip_frames=6"),
        (["model.patch=7", "data.token_budget=32"], "patches of 14 pixels; allowed: model.patch=7"),
    ],
)
def test_shards_that_do_not_fit_the_config_are_refused(setup_folder, overrides, message):
    with pytest.raises(ManifestError, match=message):
        Loader(typed_config(setup_folder, *overrides), world())


def test_one_rank_may_hold_nothing(setup_folder: Path):
    """Two samples on three ranks: the idle one brings a placeholder to the collectives."""
    config = typed_config(setup_folder, global_batch=2)
    loaders = [Loader(config, world(rank, 3)) for rank in range(3)]
    batches = [next(loader) for loader in loaders]
    for loader in loaders:
        loader.close()
    keys = [batch.micro[0].key.tolist() for batch in batches]
    assert keys[0] == [0]  # the split of one sample over three ranks leaves the first empty
    assert len({key for row in keys for key in row} - {0}) == 2
    assert all(batch.slots == [max(len(row) for row in keys)] for batch in batches)


def test_micro_batches_are_bounded(setup_folder: Path):
    loader = Loader(typed_config(setup_folder, micro_batch=3), world())
    assert all(micro.samples <= 3 for micro in next(loader).micro)
    loader.close()


def test_an_image_only_source_needs_no_video(setup_folder: Path):
    config = typed_config(setup_folder, global_batch=4)
    images = replace(config.data, sources=[config.data.sources[1]])
    loader = Loader(replace(config, data=images), world())
    (micro,) = next(loader).micro
    loader.close()
    assert micro.view.tolist() == [IMAGE] * 4
    assert torch.equal(micro.source, torch.zeros(4, dtype=torch.int32))


def sized(config: TrainConfig, **sizes: int) -> TrainConfig:
    sources = [replace(s, size=sizes.get(s.name, 0)) for s in config.data.sources]
    return replace(config, data=replace(config.data, sources=sources))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sources_pictures_have_its_own_side(setup_folder: Path, workers: int):
    """56 px pictures beside 28 px clips: 16 tokens of a 4 x 4 grid beside 8 tokens of 2 x 2."""
    plain = "data.augment={gain: 0, shift: 0, token_keep: 1}"
    config = typed_config(setup_folder, plain, f"data.workers={workers}", global_batch=8)
    validate(sized(config, image=56), "sized")
    loader = Loader(sized(config, image=56), world())
    (micro,) = next(loader).micro
    loader.close()
    assert micro.cu_seqlens.diff().tolist() == [8] * 4 + [16] * 4
    first = int(micro.cu_seqlens[4])
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4))
    for picture in micro.positions[first:].split(16):
        assert torch.equal(picture, grid.int())
    clips = micro.positions[:first]
    tiled = torch.repeat_interleave(micro.view[:4] == TILING, 8)
    assert clips[~tiled, 1:].max() == 1  # tiles are stacked: h runs on
    assert clips[:, 2].max() == 1


def whole_pictures(config: TrainConfig, size: int) -> torch.Tensor:
    """(4, 3, size, size) pictures of a step, put together from their patches."""
    loader = Loader(sized(config, image=size), world())
    (micro,) = next(loader).micro
    loader.close()
    side = size // 14
    patches = micro.patches[int(micro.cu_seqlens[4]) :].float()
    tiles = patches.view(4, side, side, 3, 14, 14).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(4, 3, size, size)


def test_a_larger_side_shows_the_same_picture(setup_folder: Path):
    """The pictures are noise, so halving what was enlarged blurs them: by their filters' weights
    0.41 of the distance to another picture is left."""
    plain = "data.augment={gain: 0, shift: 0, token_keep: 1}"
    config = typed_config(setup_folder, plain, global_batch=8)
    small, large = (whole_pictures(config, size) for size in (28, 56))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    own, other = ((halved - x).abs().mean() for x in (small, small.roll(1, 0)))
    assert own < 0.6 * other


def test_clips_that_the_budget_does_not_fit_are_refused(setup_folder: Path):
    """28 px holds the budget of 8 tokens, which the config alone cannot know to be the pictures."""
    config = sized(typed_config(setup_folder), video=14)
    validate(config, "sized")
    with pytest.raises(ConfigError, match=r"source video, clips at 14 px.*; use 2$"):
        Loader(config, world())


def test_labels_with_other_classes_than_expected_are_refused(setup_folder: Path):
    config = typed_config(setup_folder)
    first, other = config.data.sources
    for classes in (0, 40):
        sources = [replace(first, classes=classes), other]
        Loader(replace(config, data=replace(config.data, sources=sources)), world()).close()
    wrong = replace(config.data, sources=[replace(first, classes=41), other])
    with pytest.raises(
        LabelError, match=r"labels of 40 classes; allowed: 41, the classes of source vid"
    ):
        Loader(replace(config, data=wrong), world())
