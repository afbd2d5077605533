"""Decoded clips, with and without the cache."""

import numpy as np

from ovtrain.data.clips import ClipReader
from ovtrain.data.shards import ShardReader
from tests.helpers.shards import write_shards


def frames_of(clips: ClipReader, i: int, wanted: list[int]) -> np.ndarray:
    return np.stack([frame for _, frame in clips.clip(i).frames(wanted)])


def test_shards_with_the_same_keys_and_other_pixels_share_no_cached_clip(tmp_path):
    folder, cache = tmp_path / "video", str(tmp_path / "cache")
    found = []
    for frames in (8, 16):  # the same keys: another length draws other random pixels
        manifest = write_shards(folder, "video", 3, frames=frames)
        cached = frames_of(ClipReader(ShardReader(str(folder)), cache), 2, [0, 1])
        straight = ClipReader(ShardReader(str(folder)))
        assert np.array_equal(cached, frames_of(straight, 2, [0, 1]))
        found.append((manifest.fingerprint, cached))
    assert found[0][0] == found[1][0]
    assert not np.array_equal(found[0][1], found[1][1])


def test_a_damaged_cached_clip_is_decoded_again(tmp_path):
    write_shards(tmp_path / "video", "video", 2)
    clips = ClipReader(ShardReader(str(tmp_path / "video")), str(tmp_path / "cache"))
    expected = frames_of(clips, 1, [0, 3])
    assert clips.cache is not None
    path = clips.cache / "1.npy"
    for damage in (b"", path.read_bytes()[:-5], b"no array"):
        path.write_bytes(damage)
        assert np.array_equal(frames_of(clips, 1, [0, 3]), expected)
