"""What was packed comes out as it went in."""

import numpy as np

from ovtrain.data.batch import PackedSample, pack, unpack


def sample(tokens: int, labels: int, number: int) -> PackedSample:
    patches = np.full((tokens, 12), number, np.uint8)
    positions = np.arange(tokens * 3, dtype=np.int32).reshape(-1, 3)
    return PackedSample(
        patches, positions, np.arange(labels, dtype=np.int32), number, 1, 7 + number, 2
    )


def test_what_was_packed_comes_out_as_it_went_in():
    given = [sample(3, 2, 0), sample(1, 0, 1), sample(5, 1, 2)]
    found = unpack(pack(given))
    for one, other in zip(given, found, strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(other, name)), name
