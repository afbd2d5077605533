"""Perceptual hashes survive what copies go through, and samples are grouped by all three signs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_pipelines.dedup.duplicates import find_duplicates
from data_pipelines.dedup.embeddings import ROWS, embedding_edges
from data_pipelines.dedup.hashing import (
    CLIP_DISTANCE,
    PICTURE_DISTANCE,
    clip_hash,
    picture_hash,
)
from ovtrain.schema.errors import DuplicateError, InputError

SIDE = 128


def picture(seed: int) -> np.ndarray:
    """(SIDE, SIDE, 3): discs and boxes that cover one another."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for number in range(150):
        (x, y), size = rng.integers(0, SIDE, 2), 4 / (rng.random() + 0.05)
        shape = draw.rectangle if number % 2 else draw.ellipse
        shape((x - size, y - size, x + size, y + size), tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height)))


COPIES = {
    "compressed hard": lambda image: jpeg(image, 30),
    "half the size": lambda image: resized(image, 64, 64),
    "twice the size": lambda image: resized(image, 256, 256),
    "another shape": lambda image: resized(image, 120, 90),
    "darker": lambda image: (0.9 * image).astype(np.uint8),
    "brighter": lambda image: np.minimum(1.1 * image, 255).astype(np.uint8),
    "cropped by 2 %": lambda image: image[1:-1, 1:-1],
}


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(a ^ b).sum())


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_a_picture_are_near_it(copy: str):
    distances = []
    for seed in range(10):
        image = picture(seed)
        found, original = picture_hash(COPIES[copy](image)), picture_hash(image)
        assert found.informative
        distances.append(apart(found.words, original.words))
    assert max(distances) <= PICTURE_DISTANCE


def test_different_pictures_and_clips_are_far_apart():
    words = np.stack([picture_hash(picture(seed)).words for seed in range(60)])
    least = min(apart(a, b) for i, a in enumerate(words) for b in words[:i])
    assert least > 2 * PICTURE_DISTANCE
    clips = words.reshape(15, 4)
    assert min(apart(a, b) for i, a in enumerate(clips) for b in clips[:i]) > 2 * CLIP_DISTANCE


def test_rgb_and_its_luma_have_the_same_hash():
    image = picture(0)
    luma = np.asarray(Image.fromarray(image).convert("L"))
    assert apart(picture_hash(image).words, picture_hash(luma).words) <= 2


def test_flat_pictures_are_not_informative():
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(16, 8, (SIDE, SIDE)), 0, 255).astype(np.uint8)
    dots = np.zeros((SIDE, SIDE), np.uint8)
    dots[60, 60] = 255
    for flat in (np.zeros((9, 7), np.uint8), np.full((SIDE, SIDE, 3), 255, np.uint8), noise, dots):
        assert not picture_hash(flat).informative
    assert picture_hash(np.full((1, 1), 7, np.uint8)).informative is False


def test_a_clip_is_hashed_at_the_middles_of_its_quarters():
    frames = np.stack([picture(seed)[..., 1] for seed in range(8)])
    found = clip_hash(frames)
    expected = [picture_hash(frames[place]).words[0] for place in (1, 3, 5, 7)]
    np.testing.assert_array_equal(found.words, expected)
    assert found.informative
    assert len(set(clip_hash(frames[:1]).words.tolist())) == 1


def test_a_clip_is_informative_where_most_of_its_frames_are():
    frames = np.stack([picture(seed)[..., 1] for seed in range(4)])
    frames[0] = 0
    assert clip_hash(frames).informative
    frames[3] = 0
    assert not clip_hash(frames).informative


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_arrays_that_are_no_pictures_are_refused(wrong: np.ndarray):
    with pytest.raises(InputError, match=r"picture: .*allowed"):
        picture_hash(wrong)
    with pytest.raises(InputError, match=r"frames: .*allowed"):
        clip_hash(wrong)
    with pytest.raises(InputError, match=r"picture: uint8 \(4, 4, 4\)"):
        picture_hash(np.zeros((4, 4, 4), np.uint8))


def test_content_looks_and_embeddings_are_joined(tmp_path: Path):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (8, 4), dtype=np.uint64)
    hashes[5] = hashes[2] ^ np.uint64(5)
    np.save(tmp_path / "edges.npy", np.array([[7, 5]]))
    content = ["a", "b", "c", "d", "a", "e", "f", "g"]
    telling = np.ones(8, bool)
    labels = find_duplicates(content, hashes, telling, 24, [tmp_path / "edges.npy"])
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 0, 2, 6, 2])
    numbers = np.array([ord(letter) for letter in content], np.uint64)
    np.testing.assert_array_equal(
        find_duplicates(numbers, hashes, telling, 24, [tmp_path / "edges.npy"]), labels
    )
    np.testing.assert_array_equal(
        find_duplicates(None, hashes, telling, 24), [0, 1, 2, 3, 4, 2, 6, 7]
    )


def test_dark_clips_are_duplicates_only_where_their_bytes_are_equal():
    dark = clip_hash(np.zeros((8, 32, 32), np.uint8))
    hashes = np.repeat(dark.words[None], 4, axis=0)
    telling = np.full(4, dark.informative)
    labels = find_duplicates(["a", "b", "a", "c"], hashes, telling, CLIP_DISTANCE)
    np.testing.assert_array_equal(labels, [0, 1, 0, 3])


def test_the_preferred_sample_is_the_first_of_its_group():
    labels = find_duplicates(["x"] * 5, np.zeros((5, 1), np.uint64), np.zeros(5, bool), 6)
    assert not labels.any()
    none = find_duplicates([], np.zeros((0, 4), np.uint64), np.zeros(0, bool), 24)
    assert none.shape == (0,)


def test_lists_of_different_lengths_are_refused():
    hashes = np.zeros((3, 1), np.uint64)
    with pytest.raises(DuplicateError, match="the same samples in each"):
        find_duplicates(["a"], hashes, np.ones(3, bool), 6)
    with pytest.raises(DuplicateError, match="the same samples in each"):
        find_duplicates(None, hashes, np.ones(2, bool), 6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_embedding_edges_are_the_pairs_with_that_cosine(dtype: type, tmp_path: Path):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2 * ROWS + 100, 8)).astype(dtype)
    features[7] = 0
    features[-1] = 3 * features[5]
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    count = embedding_edges(mapped, 0.97, tmp_path / "edges.npy")
    edges = np.load(tmp_path / "edges.npy", mmap_mode="r")
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True) + 1e-30
    cosines = np.triu(unit @ unit.T, 1)
    # In float32, so pairs within a rounding of the threshold may fall on either side.
    sure = {tuple(pair) for pair in np.argwhere(cosines > 0.97 + 1e-5).tolist()}
    possible = {tuple(pair) for pair in np.argwhere(cosines > 0.97 - 1e-5).tolist()}
    found = [tuple(pair) for pair in edges.tolist()]
    assert sure <= set(found) <= possible
    assert len(found) == len(set(found)) == count > 50
    assert (5, len(features) - 1) in sure
    assert not (edges == 7).any()


def test_features_that_are_none_are_refused_and_leave_no_file(tmp_path: Path):
    out = tmp_path / "edges.npy"
    features = np.ones((4, 3), np.float32)
    features[2, 1] = np.nan
    for wrong, message in ((features, r"features\[2\]"), (np.ones((4, 3)), "float64")):
        with pytest.raises(DuplicateError, match=message):
            embedding_edges(wrong, 0.9, out)
    with pytest.raises(DuplicateError, match="cosine=0"):
        embedding_edges(features, 0, out)
    assert not list(tmp_path.iterdir())


def test_no_features_are_no_edges(tmp_path: Path):
    assert embedding_edges(np.zeros((0, 3), np.float32), 0.9, tmp_path / "edges.npy") == 0
    assert np.load(tmp_path / "edges.npy").shape == (0, 2)
