"""The published loop that a whole step is timed against computes what it claims to."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovtrain.config.model import ModelConfig
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.ops.patchify import normalise_patches
from tests.helpers.benchmark_modules import benchmark_module

peer_encoder = benchmark_module("peer_encoder")
peer_data = benchmark_module("peer_data")
peer_step = benchmark_module("peer_step")
SIDE, PATCH, FRAMES = 28, 14, 64
TOKENS = (SIDE // PATCH) ** 2
WIDTH, DEPTH, HEADS, HIDDEN = 64, 2, 2, 96


@pytest.fixture(scope="module")
def ours() -> Encoder:
    own = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp": HIDDEN, "init_std": 0.2}
    return build_encoder(ModelConfig(rope_style="released", **own), seed=0)


@pytest.fixture
def peer(ours: Encoder) -> Any:
    found = peer_encoder.PeerEncoder(WIDTH, DEPTH, HEADS, HIDDEN, patch=PATCH)
    peer_encoder.copy_weights(found, ours.state_dict())
    return found


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two clips, (2, T, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dense(frames: np.ndarray) -> Tensor:
    """(2, 3, T, H, W) float32, by the peer's own loop."""
    found = np.empty((2, 3, FRAMES, SIDE, SIDE), np.float32)
    for clip, out in zip(frames, found, strict=True):
        for t, frame in enumerate(clip):
            peer_data.normalise(frame, out[:, t])
    return torch.from_numpy(found)


def places(flat: Tensor) -> Tensor:
    """(n,) flat -> (n, 3) t, h, w."""
    side = SIDE // PATCH
    return torch.stack([flat // TOKENS, flat % TOKENS // side, flat % side], 1)


def raw_patches(clip: np.ndarray, where: Tensor) -> Tensor:
    """(T, H, W, 3) uint8 and (n, 3) -> (n, 588) uint8, patch by patch."""
    cut = [
        clip[t, h * PATCH : (h + 1) * PATCH, w * PATCH : (w + 1) * PATCH].transpose(2, 0, 1)
        for t, h, w in where.tolist()
    ]
    return torch.from_numpy(np.stack(cut).reshape(len(cut), -1))


def pooled_by(encoder: Encoder, patches: Tensor, positions: Tensor) -> Tensor:
    cu = torch.tensor([0, len(patches)], dtype=torch.int32)
    return encoder(patches, positions, cu, len(patches))[1][0]


def test_patches_of_dense_frames_at_some_places_give_the_packed_encoders_embedding(
    ours: Encoder, peer: Any, frames: np.ndarray, dense: Tensor
):
    generator = torch.Generator().manual_seed(1)
    flat = torch.stack([torch.randperm(FRAMES * TOKENS, generator=generator)[:40] for _ in "ab"])
    patches = peer_encoder.patches_at(dense, flat, PATCH)
    found = peer(patches, (FRAMES, SIDE // PATCH, SIDE // PATCH), flat)
    for clip, at, got, embedding in zip(frames, flat, patches, found, strict=True):
        raw = raw_patches(clip, places(at))
        torch.testing.assert_close(got, normalise_patches(raw), atol=1e-5, rtol=0)
        wanted = pooled_by(ours, raw, places(at))
        torch.testing.assert_close(embedding, wanted, atol=1e-4, rtol=1e-4)


def test_a_whole_picture_gives_the_packed_encoders_embedding(
    ours: Encoder, peer: Any, frames: np.ndarray, dense: Tensor
):
    patches = peer_encoder.all_patches(dense[:, :, 5], PATCH)
    found = peer(patches, (1, SIDE // PATCH, SIDE // PATCH))
    where = places(torch.arange(TOKENS))
    for clip, embedding in zip(frames, found, strict=True):
        wanted = pooled_by(ours, raw_patches(clip[5:], where), where)
        torch.testing.assert_close(embedding, wanted, atol=1e-4, rtol=1e-4)


class Loop:
    """A peer's step on random clips with the released split of 16 into 8, 6 and 2."""

    def __init__(self, encoder: Any) -> None:
        generator = torch.Generator().manual_seed(2)
        head = benchmark_module("peer_heads").PeerHead
        self.heads = [head(120, WIDTH, 0, softmaxes=8, rate=0.5, bf16=False) for _ in range(3)]
        self.step = peer_step.PeerStep(encoder, self.heads, (8, 6, 2), 8, bf16=False, lr=1e-3)
        stills = [torch.randn(n, 3, SIDE, SIDE, generator=generator) for n in (4, 2)]
        clips = torch.randn(16, 3, FRAMES, SIDE, SIDE, generator=generator)
        self.batch = peer_data.DenseBatch(*stills, clips)
        self.visible = torch.randint(FRAMES * TOKENS, (8, 8 * TOKENS), generator=generator)
        drawn = [torch.rand(n, 120, generator=generator).argsort(1)[:, :10] for n in (4, 2, 16)]
        self.labels = drawn


def test_clips_are_shown_by_position_as_picked_patches_frames_and_tiles(peer: Any):
    loop, seen = Loop(peer), list[tuple[Any, ...]]()
    peer.register_forward_pre_hook(lambda _, given: seen.append(given))
    found = loop.step.embeddings(loop.batch, loop.visible)
    assert [len(part) for part in found] == [4, 2, 16]
    side = SIDE // PATCH
    assert [given[1] for given in seen] == [
        (1, side, side),
        (1, side, side),
        (FRAMES, side, side),
        (1, 8 * side, side),
    ]
    indices = seen[2][2]
    assert torch.equal(indices[:8], loop.visible)
    chosen = indices[8:].unflatten(1, (8, TOKENS)) // TOKENS
    assert (chosen == chosen[..., :1]).all()
    assert torch.equal(chosen[..., 0] // 8, torch.arange(8).expand(6, 8))
    tiles = seen[3][0].unflatten(1, (8, TOKENS))
    whole = peer_encoder.all_patches(loop.batch.clips[14].transpose(0, 1).contiguous(), PATCH)
    for chunk, tile in enumerate(tiles[0]):
        assert any(torch.equal(tile, whole[8 * chunk + k]) for k in range(8))


def test_a_step_follows_the_gradient_of_the_summed_losses(peer: Any):
    """Its two halves meet at the embeddings; a graph through both gives the same."""
    loop = Loop(peer)
    states = [head.generator.get_state() for head in loop.heads]
    drawn = loop.step.generator.get_state()
    seen: dict[str, Tensor] = {}
    for name, parameter in peer.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.__setitem__(name, p.grad.clone())
        )
    before = {name: p.detach().clone() for name, p in peer.named_parameters()}
    rows = [head.weight.detach().clone() for head in loop.heads]
    losses = loop.step.run(loop.batch, loop.visible, loop.labels)
    found = dict(seen)
    assert all((head.weight != row).all() for head, row in zip(loop.heads, rows, strict=True))
    assert all(not torch.equal(p, before[n]) for n, p in peer.named_parameters())
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(before[name])
        for head, row, state in zip(loop.heads, rows, states, strict=True):
            head.weight.copy_(row)
            head.generator.set_state(state)
    loop.step.generator.set_state(drawn)
    pooled = loop.step.embeddings(loop.batch, loop.visible)
    sums = [h.loss_sum(x, y) for h, x, y in zip(loop.heads, pooled, loop.labels, strict=True)]
    torch.stack(sums).sum().backward()
    torch.testing.assert_close(torch.stack(losses), torch.stack(sums).detach() / 8)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, seen[name], atol=1e-3, rtol=1e-3, msg=name)


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    across = np.linspace(0, 255, width).astype(np.uint8)
    Image.fromarray(np.broadcast_to(across[None, :, None], (height, width, 3)).copy()).save(
        file, "JPEG", quality=95
    )
    return file.getvalue()


def test_pictures_show_a_part_of_the_released_sizes_and_documents_all():
    """A ramp from left to right: what is shown of it is read off its ends."""
    media, rng = jpeg(60, 80), np.random.default_rng(0)
    shares, mirrored = list[float](), 0
    for _ in range(60):
        row = peer_data.part_of(media, 40, rng.random(5))[20, :, 0].astype(float)
        mirrored += row[0] > row[-1]
        shares.append(abs(row[-1] - row[0]) / 255)
    assert 15 < mirrored < 45
    # Widths of sqrt(area * aspect) of 60 x 80: from 52 to 77 of 80.
    assert min(shares) > 0.6
    assert max(shares) < 1
    assert np.ptp(shares) > 0.15
    row = peer_data.whole(media, 40)[20, :, 0]
    assert row[0] < 8
    assert row[-1] > 247
