"""Embeddings of prepared clips: fixed frames, equal budgets, no augmentation, blanking."""

from pathlib import Path

import pytest
import torch

from ovtrain.config.model import ModelConfig
from ovtrain.eval.embeddings import ClipSet, ViewSpec, batches, encode
from ovtrain.models.encoder import Encoder, build_encoder

CODEC, FRAMES, MIDDLE = (ViewSpec(name, 8, 2) for name in ("codec", "frames", "middle frame"))


@pytest.fixture(scope="module")
def clips(setup_folder: Path) -> ClipSet:
    return ClipSet(str(setup_folder / "video"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(ModelConfig(preset="tiny"), seed=0).eval()


def embed(encoder: Encoder, clips: ClipSet, spec: ViewSpec, size: int = 7):
    parts = list(encode(encoder, clips, range(len(clips)), spec, size=size, workers=1, bf16=False))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def test_codec_and_frames_have_the_same_budget(encoder, clips):
    for spec, tokens in ((CODEC, 8), (FRAMES, 8), (MIDDLE, 4)):
        found, pooled = embed(encoder, clips, spec)
        assert found.shape == (24, tokens, 192)
        assert pooled.shape == (24, 192)


def test_the_batch_size_changes_nothing(encoder, clips):
    for a, b in zip(embed(encoder, clips, CODEC, 5), embed(encoder, clips, CODEC, 24), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_clips_come_in_shard_order(clips):
    keys = [
        int(k)
        for batch in batches(clips, range(len(clips)), CODEC, 5, workers=2)
        for k in batch.key
    ]
    assert keys == list(range(24))


def test_a_single_frame_is_the_middle_one_at_t_0(clips):
    plan = clips.plan(0, MIDDLE)
    assert set(plan.where[:, 0]) == {4}
    assert set(plan.positions[:, 0]) == {0}
    chosen = [set(clips.plan(i, ViewSpec("random frame", 8, 2)).where[:, 0]) for i in range(24)]
    assert all(len(frames) == 1 for frames in chosen)
    assert len(set.union(*chosen)) > 4


def test_blanked_clips_are_all_the_same_to_the_encoder(encoder, clips):
    """Even where their positions differ, as the codec view's do."""
    blank = ViewSpec("codec", 8, 2, "blanked")
    _, pooled = embed(encoder, clips, blank)
    torch.testing.assert_close(pooled, pooled[:1].expand_as(pooled), rtol=0, atol=1e-5)
    assert blank.label == "blanked codec"


def test_permuted_clips_keep_both_sets_and_lose_the_pairing(clips):
    plain, permuted = (clips.sample(3, ViewSpec("codec", 8, 2, c)) for c in ("", "permuted"))
    assert plain.positions.tolist() == permuted.positions.tolist()
    assert sorted(plain.patches.tolist()) == sorted(permuted.patches.tolist())
    assert plain.patches.tolist() != permuted.patches.tolist()


def test_the_cache_changes_nothing(encoder, clips, setup_folder, tmp_path):
    cached = ClipSet(str(setup_folder / "video"), str(tmp_path))
    for _ in range(2):
        for a, b in zip(embed(encoder, clips, CODEC), embed(encoder, cached, CODEC), strict=True):
            assert torch.equal(a, b)
