"""Sample keys must be unique: labels are found by their hashes."""

from __future__ import annotations

import numpy as np

from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError

AT_ONCE_BITS = 26
"""Hashes that are sorted at a time, as a power of two."""


def check_keys(reader: ShardReader) -> None:
    """Raise LabelError where two samples have one key: known at the end, it would cost all of a
    run. Hashes are sorted a part at a time."""
    parts = 2 ** max(0, (len(reader.hashes) - 1).bit_length() - AT_ONCE_BITS)
    for part in range(parts):
        rows = np.flatnonzero(reader.hashes // (2**64 // parts) == part) if parts > 1 else None
        found = reader.hashes if rows is None else reader.hashes[rows]
        order = np.argsort(found, kind="stable")
        twice = np.flatnonzero(found[order][1:] == found[order][:-1])
        if len(twice):
            pair = order[twice[0] : twice[0] + 2]
            names = [reader.name(int(i if rows is None else rows[i])) for i in pair]
            raise LabelError(
                str(reader.folder),
                f"{names[0]} and {names[1]} have the same key, or hash of it",
                fix="make keys unique and prepare the shards again",
            )
