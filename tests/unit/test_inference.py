"""Embeddings of pictures, frames and videos: what the encoder is shown, and mixtures of it."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ovtrain.codec.video_selection import select_from_video
from ovtrain.config.model import ModelConfig
from ovtrain.export import save_encoder
from ovtrain.inference import Embedder, frames_view, image_view, video_view
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import ConfigError, InputError, MediaError
from tests.unit.codec.pictures import encode, moving_square


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("model") / "exported"
    save_encoder(build_encoder(ModelConfig(preset="nano", init_std=0.1), seed=0), folder)
    return Embedder.load(folder)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip() -> bytes:
    options = {"x265-params": "pools=none:log-level=error:bframes=0"}
    return encode(moving_square(20, step=(2, 1)), "libx265", options)


def test_a_picture_may_be_a_file_an_image_or_an_array(embedder: Embedder, tmp_path: Path):
    array = noise(56, 42)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = [
        embedder.image(picture, size="own")
        for picture in (array, Image.fromarray(array), tmp_path / "a.png")
    ]
    assert found[0].tokens.shape == (12, 192)
    assert found[0].pooled.shape == (192,)
    assert found[0].view.positions[-1].tolist() == [0, 3, 2]
    assert (
        found[0].view.patches[5].tolist() == array[14:28, 28:42].transpose(2, 0, 1).ravel().tolist()
    )
    for other in found[1:]:
        assert torch.equal(other.tokens, found[0].tokens)


def test_pictures_are_resized_and_cropped_on_request():
    assert image_view(noise(300, 200), size=28).positions.shape == (4, 3)
    assert image_view(noise(300, 200)).positions.shape == (1024, 3)
    with pytest.raises(
        ConfigError, match="picture height=225: not a multiple of the patch side 14"
    ):
        image_view(noise(225, 224), size="own")


def test_pictures_are_upright_as_their_exif_data_say(tmp_path: Path):
    straight = Image.fromarray(noise(28, 42))
    exif = Image.Exif()
    exif[274] = 6  # stored turned, to be turned back by 270 degrees
    turned = straight.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.png", exif=exif)
    expected = image_view(straight, size="own").patches
    assert np.array_equal(image_view(tmp_path / "a.png", size="own").patches, expected)
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(image_view(opened, size="own").patches, expected)


def test_the_encoders_own_side_is_the_default_and_the_encoder_stays_as_it_is(tmp_path: Path):
    encoder = build_encoder(ModelConfig(preset="nano"), seed=0).train()
    save_encoder(encoder, tmp_path / "model", image_size=56)
    small = Embedder.load(tmp_path / "model")
    assert len(small.image(noise(100, 100)).tokens) == 16
    assert len(small.frames([noise(100, 100)]).tokens) == 16
    save_encoder(small.encoder, tmp_path / "again")
    assert Embedder.load(tmp_path / "again").encoder.image_size == 56
    assert len(Embedder(encoder, dtype=torch.bfloat16).image(noise(100, 100)).tokens) == 1024
    assert encoder.training
    assert encoder.layernorm_pre.weight.dtype == torch.float32


def test_frames_are_spread_over_the_virtual_grid():
    eight = frames_view([noise(28, 28)] * 8, size="own")
    assert eight.positions[::4, 0].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert frames_view([noise(28, 28)], size="own").positions[:, 0].tolist() == [0] * 4
    placed = frames_view([noise(28, 28)] * 2, t=[5, 40], size="own")
    assert placed.positions[::4, 0].tolist() == [5, 40]


def test_a_mixture_in_one_call_is_each_by_itself(embedder: Embedder, clip: bytes):
    views = [
        image_view(noise(42, 70), size="own"),
        video_view(clip, budget=40, size=56),
        frames_view([noise(28, 28, seed) for seed in range(3)], size="own"),
    ]
    together = embedder.many(views)
    assert [len(one.tokens) for one in together] == [15, 40, 12]
    for one, view in zip(together, views, strict=True):
        (alone,) = embedder.many([view])
        torch.testing.assert_close(one.tokens, alone.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.pooled, alone.pooled, rtol=0, atol=1e-5)
    assert embedder.many([]) == []


def test_a_video_gives_the_patches_that_its_codec_points_at(embedder: Embedder, clip: bytes):
    found = embedder.video(clip, budget=60, size=56)
    chosen = select_from_video(clip, 60, size=56)
    assert found.view.origin == chosen.origin == "hevc-bitstream"
    assert found.view.positions.tolist() == chosen.positions.tolist()
    with av.open(io.BytesIO(clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    view = video_view(clip, budget=10**6, size=pictures[0].shape[0] // 14 * 14)
    assert len(view.patches) == len(pictures) * len(view.patches[view.positions[:, 0] == 0])


def test_a_turned_video_is_upright(monkeypatch: pytest.MonkeyPatch, clip: bytes):
    """Quarter turns of the metadata turn pictures and energies alike."""
    straight = video_view(clip, budget=10**6, size=56)
    monkeypatch.setattr("ovtrain.inference.quarter_turns", lambda _: 1)
    turned = video_view(clip, budget=10**6, size=56)

    def pictures(view):
        tiles = view.patches.reshape(-1, 4, 4, 3, 14, 14)
        return tiles.transpose(0, 1, 4, 2, 5, 3).reshape(-1, 56, 56, 3)

    assert np.array_equal(pictures(turned), np.rot90(pictures(straight), axes=(1, 2)))
    few, few_turned = (select_from_video(clip, 40, size=56, turns=n).energy for n in (0, 1))
    assert np.array_equal(few_turned, np.rot90(few, axes=(1, 2)))


def test_bad_input_is_named(embedder: Embedder, tmp_path: Path, clip: bytes):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match="t=64 in row 0; allowed: 0 to 63"):
        embedder.frames([noise(28, 28)], t=[64], size="own")
    with pytest.raises(InputError, match="frames: 65 frames; allowed: 1 to 64"):
        frames_view([noise(28, 28)] * 65)
    with pytest.raises(InputError, match="0 frames"):
        frames_view([])
    with pytest.raises(InputError, match=r"t: int64 \(1,\) for 2 frames"):
        frames_view([noise(28, 28)] * 2, t=[0])
    with pytest.raises(InputError, match="0 frames"):
        frames_view([], t=[])
    with pytest.raises(InputError, match=r"t: float64 .*allowed: one whole number"):
        frames_view([noise(28, 28)] * 2, t=[0.7, 1.9])
    with pytest.raises(InputError, match=r"frames: one str; .*put it into a list"):
        frames_view("a.png")
    with pytest.raises(InputError, match='size: 0; allowed: a picture side in pixels, or "own"'):
        image_view(noise(28, 28), size=0)
    with pytest.raises(ConfigError, match=r"budget=40\.0: no positive count"):
        video_view(clip, budget=40.0)
    with pytest.raises(InputError, match="frames: 100; allowed: 1 to 64"):
        embedder.video(tmp_path / "a.mp4", frames=100)
    with pytest.raises(InputError, match="view 1: patches of 768 numbers; allowed: 588"):
        embedder.many(image_view(noise(112, 112), size="own", patch=patch) for patch in (14, 16))
    with pytest.raises(InputError, match=r"frame 1: 14x28 behind 28x28; .*give a size"):
        frames_view([noise(28, 28), noise(28, 14)], size="own")
    with pytest.raises(InputError, match=r"picture: float64 \(28, 28, 3\)"):
        image_view(noise(28, 28) / 255)
    with pytest.raises(MediaError, match=r"none.png: cannot be read \(No such file"):
        image_view(tmp_path / "none.png")
    with pytest.raises(MediaError, match=r"a\.mp4: is not a readable video"):
        embedder.video(tmp_path / "a.mp4")
