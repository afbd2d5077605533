"""Sample metadata and key hashes."""

import numpy as np
import pytest

from ovtrain.schema.errors import ManifestError
from ovtrain.schema.sample import SampleMeta, key_hash

META = SampleMeta("k", "video", "s", 64, 224, 224, 30.0, "hevc-bitstream", "a.mp4", 128)


def test_metadata_comes_back():
    assert SampleMeta.from_json(META.to_json(), "x") == META


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"key": "k"}', b'{"nosuch": 1}', b"\xff"])
def test_other_payloads_are_refused_by_name(raw: bytes):
    with pytest.raises(ManifestError, match=r"a\.tar/k: not sample metadata"):
        SampleMeta.from_json(raw, "a.tar/k")


def test_hashes_are_fixed_for_all_time():
    """Stores on disk are joined on these: the function may not change."""
    assert key_hash(["clip-000001"]).tolist() == [18177183222310125034]
    assert key_hash(["clip-000001"]).dtype == np.uint64


def test_no_two_of_many_keys_are_equal():
    assert len(set(key_hash([f"clip-{i}" for i in range(20000)]).tolist())) == 20000
