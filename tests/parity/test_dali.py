"""Samples made by DALI against samples made without: the same patches, positions and order.

On the CPU clips come from the same decoder and are equal bit for bit. Pictures differ by the
resampler's weights, which DALI reads from a table: a level at most on smooth pictures, 8 on noise
(0.15 on average), as measured. Colours are computed in float32 by DALI and may round otherwise by
one level; on a picture they also stretch the level before, by 1.3 * 1.3 * 1.5 at most. A shift or
crop that is off by one pixel moves these pictures by several levels on average, a forgotten mirror
by tens.
"""

import io
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.shards.writer import write_tar
from ovtrain.config.data import AugmentConfig, DataConfig
from ovtrain.data import views
from ovtrain.data.loader import Loader
from ovtrain.data.making import Made, Maker, SampleTask
from ovtrain.data.pool import SamplePool
from ovtrain.data.tars import Member
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.isolated import Failure
from ovtrain.schema.sample import key_hash
from tests.helpers.shards import hevc, jpeg, npy, write_shards
from tests.helpers.training import typed_config, world

pytestmark = pytest.mark.dali
if not os.environ.get("CI"):  # in CI its absence is a failure
    pytest.importorskip("nvidia.dali")

SIDE, FRAMES = 56, 8
PICTURE = PatchGrid.from_pixels(1, SIDE, SIDE, 14)
CLIP = PatchGrid.from_pixels(FRAMES, SIDE, SIDE, 14)
STORED = PatchGrid.from_pixels(FRAMES, 84, 98, 14)
COLOURS = {"gain": 0.3, "contrast": 0.3, "saturation": 0.5}
MOVES = {"flip": 0.5, "shift": 3, "token_keep": 0.6}
LOOKS = {
    "nothing": AugmentConfig(),
    "crop": AugmentConfig(crop_area=[0.3, 1.0]),
    "moves": AugmentConfig(**MOVES),
    "colours": AugmentConfig(**COLOURS),
    "all": AugmentConfig(**MOVES, **COLOURS, crop_area=[0.3, 1.0]),
}
PICTURE_LEVELS, COLOUR_LEVELS = 1, 4


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Gradients and soft blobs: what photographs are made of, without hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(3):
        fy, fx, phase = *rng.uniform(0.5, 3, 2), rng.uniform(0, 6)
        planes.append(127 + 100 * np.sin(fy * y / height * 3 + fx * x / width * 3 + phase))
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def chequerboard(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([((x // 16 + y // 16) % 2 * 200 + 20).astype(np.uint8)] * 3, -1)


def moving(height: int, width: int) -> np.ndarray:
    """Frames that pan over a picture."""
    wide = smooth(height, width + 4 * FRAMES, 5)
    return np.stack([wide[:, 4 * t : 4 * t + width] for t in range(FRAMES)])


def config(augment: AugmentConfig = LOOKS["nothing"], **values: int | float) -> DataConfig:
    given = {"workers": 0, "token_budget": 40, "chunks": 4} | values
    return DataConfig(size=SIDE, clip_frames=FRAMES, augment=augment, **given)


def picture_tasks(folder: Path, files: list[bytes], kind: str = "image") -> list[SampleTask]:
    made = SampleTask("", kind, views.IMAGE, 0, PICTURE, PICTURE, 0.5, {})
    return [
        replace(
            made, where=f"tar/{i}", seed=i, members={"jpg": stored(folder, f"{i}", "jpg", data)}
        )
        for i, data in enumerate(files)
    ]


def stored(folder: Path, key: str, name: str, data: bytes) -> Member:
    """A payload in a tar of its own."""
    path = folder / f"{key}.{name}.tar"
    with open(path, "wb") as handle:
        write_tar(handle, [(key, {name: data})])
    return Member(name, str(path), 512, len(data), None, int(key_hash([key])[0]), "")


def clip_tasks(folder: Path, grid: PatchGrid, clip: bytes | None = None) -> list[SampleTask]:
    """Each view twice, of one clip."""
    height, width = grid.height * grid.patch, grid.width * grid.patch
    energy = np.random.default_rng(0).integers(0, 65535, grid.shape).astype(np.uint16)
    members = {
        "mp4": stored(folder, "clip", "mp4", clip or hevc(moving(height, width))),
        "energy.npy": stored(folder, "clip", "energy.npy", npy(energy)),
    }
    made = SampleTask("", "video", 0, 0, CLIP, grid, 0.5, members)
    return [replace(made, where=f"tar/{i}", seed=i, view=i % 3) for i in range(6)]


def by_dali(data: DataConfig, tasks: list[SampleTask]) -> list[Made | Failure]:
    from ovtrain.data.decode.dali.samples import DaliSamples

    samples = DaliSamples(data)
    found = [wait() for wait in samples.submit(tasks)]
    samples.close()
    return found


def apart(data: DataConfig, tasks: list[SampleTask], found: list[Made | Failure]) -> np.ndarray:
    """Levels between what DALI and what the plain maker make of tasks, of every pixel."""
    levels: list[np.ndarray] = []
    for task, other in zip(tasks, found, strict=True):
        assert isinstance(other, Made), other
        made = Maker(data)(task)
        assert np.array_equal(made.positions, other.positions)
        assert made.filled == other.filled
        assert made.patches.shape == other.patches.shape
        levels.append(np.abs(np.subtract(made.patches, other.patches, dtype=int)).ravel())
    return np.concatenate(levels)


@pytest.mark.parametrize("kind", ["image", "document"])
@pytest.mark.parametrize("look", LOOKS)
def test_pictures_agree(tmp_path, kind, look):
    sides = [(56, 56), (80, 112), (131, 97), (100, 110), (40, 200), (30, 20)]
    files = [jpeg(smooth(*side, seed)) for seed, side in enumerate(sides)]
    files.append(jpeg(chequerboard(100, 110)))
    data, tasks = config(LOOKS[look]), picture_tasks(tmp_path, files, kind)
    levels = COLOUR_LEVELS if look in ("colours", "all") else PICTURE_LEVELS
    assert apart(data, tasks, by_dali(data, tasks)).max() <= levels


def test_pictures_that_are_decoded_smaller_agree_less(tmp_path):
    """Ours are decoded at half or a quarter of their size (``decode.base``), DALI's are not."""
    files = [jpeg(smooth(*side, 0)) for side in ((300, 500), (240, 250), (500, 200))]
    data, tasks = config(LOOKS["crop"]), picture_tasks(tmp_path, files)
    assert apart(data, tasks, by_dali(data, tasks)).max() <= 4


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("grid", [CLIP, STORED], ids=["as shown", "larger"])
def test_clips_agree_bit_for_bit_where_no_colours_change(tmp_path, look, grid):
    data, tasks = config(LOOKS[look]), clip_tasks(tmp_path, grid)
    levels = 1 if look in ("colours", "all") else 0
    assert apart(data, tasks, by_dali(data, tasks)).max() <= levels


@pytest.mark.parametrize("look", ["nothing", "moves", "all"])
def test_the_graph_that_decodes_clips_agrees(tmp_path, look, monkeypatch):
    """What a GPU runs, with the decoder that DALI's CPU build has, and a codec that this one knows.
    It turns YUV into RGB with other roundings: measured 11 levels at most, 2 on average."""
    from ovtrain.data.decode.dali import graphs
    from ovtrain.data.decode.dali.samples import DaliSamples

    plain = graphs.clip_graph
    monkeypatch.setattr(graphs, "clip_graph", lambda shape, _: plain(shape, "cpu"))
    data, tasks = config(LOOKS[look]), clip_tasks(tmp_path, STORED, vp9())
    samples = DaliSamples(data)
    found = samples._decode(tasks)
    samples.close()
    levels = apart(data, tasks, found)
    assert levels.max() <= (30 if look == "all" else 12)
    assert levels.mean() < 3


def test_the_graphs_of_a_gpu_can_be_written_down():
    """DALI checks devices and arguments of every operator; without a driver it can do no more."""
    from ovtrain.data.decode.dali import graphs

    dali = graphs.dali()
    for grid, written in (
        (PICTURE, lambda shape: graphs.picture_graph(shape, 0)),
        (CLIP, lambda shape: graphs.clip_graph(shape, "mixed")),
    ):
        for changes in (False, True):
            graph = written(graphs.Shape(grid, changes, changes))
            definition = dali.pipeline_def(batch_size=2, num_threads=1, device_id=0)
            assert definition(graph)(lambda name, t: dali.fn.external_source(name=name, dtype=t))


def vp9() -> bytes:
    """As ``clip_tasks`` has it, in VP9."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libvpx-vp9", rate=16)
        stream.height, stream.width, stream.pix_fmt = 84, 98, "yuv420p"
        stream.options = {"crf": "10", "cpu-used": "8"}
        for picture in moving(84, 98):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def test_a_broken_picture_costs_only_itself(tmp_path):
    good = jpeg(smooth(80, 90, 0))
    files = [good, b"not a jpeg", good[: len(good) // 2], good, good[:-2]]
    tasks = picture_tasks(tmp_path, files)
    tasks.append(
        replace(tasks[0], where="gone", members={"jpg": Member("x", "/gone", 512, 5, None, 0, "")})
    )
    found = by_dali(config(), tasks)
    assert [isinstance(x, Failure) for x in found] == [False, True, True, False, True, True]
    reasons = [x.category for x in found if isinstance(x, Failure)]
    assert reasons == ["not a readable picture", *["does not decode"] * 2, "storage error"]


def test_a_broken_clip_costs_only_itself(tmp_path):
    tasks = clip_tasks(tmp_path, CLIP)
    short = tmp_path / "short"
    short.mkdir()
    tasks[2] = replace(clip_tasks(short, CLIP, b"no clip")[2], where="tar/2")
    found = by_dali(config(), tasks)
    failed = [x.category if isinstance(x, Failure) else "" for x in found]
    assert failed == ["", "", "does not decode", "", "", ""]


def test_runs_get_their_own_samples(tmp_path):
    """Pipelines that fetch ahead give those of the run before; more than a batch takes two runs."""
    files = [jpeg(smooth(56, 56, seed)) for seed in range(3)]
    data, tasks = config(), picture_tasks(tmp_path, files)
    assert apart(data, tasks * 30, by_dali(data, tasks * 30)).max() <= PICTURE_LEVELS


def test_the_loader_gives_the_same_batches(setup_folder, tmp_path):
    """Random pixels, sources of all kinds and of two sizes, with a worker and with none."""
    write_shards(tmp_path / "document", "document", 6, size=42)
    typed = typed_config(setup_folder, "data.augment.flip=0.5", global_batch=9)
    clips, pictures = typed.data.sources
    shards = str(tmp_path / "document")
    other = replace(pictures, name="document", shards=shards, labels="", size=56)
    typed = replace(typed, data=replace(typed.data, sources=[clips, pictures, other]))
    for workers in (0, 1):
        loaders = [
            Loader(replace(typed, data=replace(typed.data, **values)), world())
            for values in ({"workers": 0}, {"decoder": "dali", "workers": workers})
        ]
        for _ in range(2):
            (plain,), (found,) = (next(loader).micro for loader in loaders)
            for name in ("positions", "cu_seqlens", "labels", "label_offsets", "key", "view"):
                assert getattr(plain, name).equal(getattr(found, name)), name
            apart = (plain.patches.int() - found.patches.int()).abs()
            assert apart.max() <= 12  # documents are resampled noise, stretched by up to 1.2
            assert apart.float().mean() < 0.3
        for loader in loaders:
            loader.close()


def test_a_worker_that_dies_under_dali_costs_its_sample(tmp_path, monkeypatch):
    from ovtrain.data.decode.dali import samples
    from tests.helpers.harmful import HarmfulGatherer

    monkeypatch.setattr(samples, "SamplePool", lambda d, _: SamplePool(d, HarmfulGatherer(d)))
    tasks = clip_tasks(tmp_path, CLIP)
    tasks[1] = replace(tasks[1], where="000000.tar#1")
    found = by_dali(config(workers=1), tasks)
    assert [isinstance(x, Failure) for x in found] == [False, True, False, False, False, False]
