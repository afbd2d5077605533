"""Which samples are duplicates: equal content, near looks and near embeddings in one union-find.

Duplicates of duplicates are duplicates: the components are transitive, so a chain of small changes
(frame after frame of a slow pan) joins two ends that look nothing alike. Small distances keep
chains short. Raises DuplicateError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.dedup.components import Components
from ovtrain.schema.errors import DuplicateError

Array = npt.NDArray[Any]


def find_duplicates(
    content: Sequence[str] | npt.NDArray[np.uint64] | None,
    hashes: npt.NDArray[np.uint64],
    informative: npt.NDArray[np.bool_],
    distance: int,
    edges: Sequence[Path] = (),
) -> Array:
    """(n,) the sample that stands for each: the first of its component, so samples come in the
    order in which they are preferred. Those with label i at place i are kept.

    ``content``      (n,) hashes of the payloads; equal: exact duplicates. None: not compared
    ``hashes``       (n, k) perceptual hashes, near within ``distance`` of their 64 k bits
    ``informative``  (n,) whether a sample's hash says anything of it; if not, it is not used
    ``edges``        .npy files of (E, 2) further pairs, of near embeddings say
    """
    count = len(hashes)
    if informative.shape != (count,) or (content is not None and len(content) != count):
        given = "none" if content is None else len(content)
        raise DuplicateError(
            "samples",
            f"content of {given}, hashes {hashes.shape}, informative {informative.shape}",
            allowed="the same samples in each",
        )
    found = Components(count)
    if content is not None:
        found.add(_equal(content))
    nodes = np.flatnonzero(informative)
    found.add_near(hashes[nodes], nodes, distance)
    for path in edges:
        found.add(path)
    return found.labels()


def _equal(content: Sequence[str] | npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Edges (n, 2) from the first sample with a content to each with it."""
    if isinstance(content, np.ndarray):
        _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
        firsts = first[inverse]
    else:
        seen: dict[str, int] = {}
        firsts = np.array([seen.setdefault(x, i) for i, x in enumerate(content)], np.int64)
    return np.stack([firsts, np.arange(len(content))], axis=1)
