"""Crops on the patch grid and mirroring: every token is the pixels that its position names."""

from dataclasses import replace

import numpy as np
import pytest

from ovtrain.data.augment import Window
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.loader import Loader
from ovtrain.data.views import CODEC, FRAMES, TILING
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.sample import CLIP
from tests.helpers.shards import write_shards
from tests.helpers.training import typed_config, world

SHOWN = 2
"""Patches on a side; 4 are stored."""


@pytest.fixture(scope="module")
def large(setup_folder, tmp_path_factory):
    """The set-up's config over clips that are stored at 56 pixels, shown at 28."""
    folder = tmp_path_factory.mktemp("large")
    write_shards(folder / "video", "video", 24, size=56)
    only = "data.augment={flip: 0.5, gain: 0, shift: 0, token_keep: 1}"
    config = typed_config(setup_folder, only, global_batch=8)
    first = replace(config.data.sources[0], shards=str(folder / "video"), labels="")
    return replace(config, data=replace(config.data, sources=[first]))


def shown(frames: np.ndarray, window: Window) -> np.ndarray:
    top, left = 14 * window.top, 14 * window.left
    cut = frames[:, top : top + 28, left : left + 28]
    return cut[:, :, ::-1] if window.mirrored else cut


def agrees(frames: np.ndarray, view: int, positions: np.ndarray, patches: np.ndarray) -> bool:
    for (t, h, w), patch in zip(positions.tolist(), patches, strict=True):
        if view == TILING:  # which frame a tile is, is not said: any whose patch it is
            found = frames[:, h % SHOWN * 14 :][:, :14, w * 14 : w * 14 + 14]
        else:
            found = frames[t : t + 1, h * 14 : h * 14 + 14, w * 14 : w * 14 + 14]
        if not any(np.array_equal(f.transpose(2, 0, 1).ravel(), patch) for f in found):
            return False
    return True


def test_every_token_is_the_pixels_that_its_position_names(large):
    loader = Loader(large, world())
    (source,) = loader.sources
    windows = [
        Window(top, left, mirrored)
        for top in range(3)
        for left in range(3)
        for mirrored in (False, True)
    ]
    seen: set[tuple[int, int, bool]] = set()
    views: set[int] = set()
    for _ in range(9):
        (micro,) = next(loader).micro
        for b in range(micro.samples):
            at = slice(int(micro.cu_seqlens[b]), int(micro.cu_seqlens[b + 1]))
            i = int(np.flatnonzero(source.hashes.view(np.int64) == int(micro.key[b]))[0])
            frames = decode_clip(source.reader.member(i, CLIP), "clip")
            view, positions = int(micro.view[b]), micro.positions[at].numpy()
            fitting = [
                window
                for window in windows
                if agrees(shown(frames, window), view, positions, micro.patches[at].numpy())
            ]
            assert len(fitting) == 1, (view, fitting)
            seen.add((fitting[0].top, fitting[0].left, fitting[0].mirrored))
            views.add(view)
            if view == CODEC:  # the strongest patches outside whole frames are chosen
                energy = fitting[0].energy(source.reader.energy(i), source.grid)
                if fitting[0].mirrored:
                    energy = energy[:, :, ::-1]
                chosen = np.zeros(energy.shape, bool)
                chosen[tuple(positions.T)] = True
                rest = ~chosen.reshape(len(energy), -1).all(1)
                part, kept = energy[rest], chosen[rest]
                assert not kept.any() or part[kept].min() >= part[~kept].max()
    loader.close()
    assert views == {CODEC, FRAMES, TILING}
    assert len(seen) >= 15


def test_a_source_may_forbid_to_be_mirrored(large):
    still = replace(large.data.sources[0], flip=False)
    loader = Loader(replace(large, data=replace(large.data, sources=[still])), world())
    assert {loader.sources[0].task(g).flip for g in range(20)} == {0.0}
    loader.close()


def test_nothing_is_drawn_where_there_is_nothing_to_choose():
    grid, rng = PatchGrid(8, 2, 2), np.random.default_rng(0)
    assert Window.draw(grid, grid, 0.0, rng) == Window()
    assert rng.random() == np.random.default_rng(0).random()
