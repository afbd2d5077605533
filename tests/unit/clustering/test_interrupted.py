"""Cut short at any write, and called again, a clustering ends with the same bits."""

import json
from contextlib import suppress

import numpy as np
import pytest

from clustering.assign import Labelling, label_all
from clustering.centers import CenterJob, make_centers
from clustering.kmeans import array_file, state
from clustering.kmeans.array_file import ArrayFile
from clustering.neighbours import Neighbours, make_layout
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import LabelError
from tests.unit.clustering.clusterings import ALONE, points_of, quiet
from tests.unit.clustering.reference import blobs

SETTINGS = {
    "flat": {"clusters": 40, "iterations": 3, "restarts": 2},
    "repaired": {"clusters": 200, "iterations": 2, "largest": 2.0},
    "cells": {"clusters": 40, "iterations": 2, "coarse": 5},
}


class CutShort(Exception):
    pass


class Fuse:
    """Raises at the n-th write; before or after it is done, in turn."""

    def __init__(self, monkeypatch, last):
        self.count, self.last = 0, last
        for owner, name in (
            (array_file.ArrayFile, "write"),
            (array_file.ArrayFile, "sync"),
            (state, "write_json"),
            (state.shutil, "copyfile"),
        ):
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, function):
        def call(*arguments, **named):
            self.count += 1
            if self.count == self.last and self.last % 2:
                raise CutShort
            result = function(*arguments, **named)
            if self.count == self.last:
                raise CutShort
            return result

        return call


def data():
    x = np.concatenate([blobs(samples=300), np.repeat(blobs(samples=5, seed=1), 20, axis=0)])
    return np.random.default_rng(0).permutation(x)


def clustered(folder, settings):
    """(centers, rows without times, keys of labels)."""
    config = ClusterConfig(**{"top": 2, **settings})
    points, largest = points_of(data())
    made = make_centers(CenterJob(points, largest, config, ALONE, folder, "stamp", quiet))
    shape = (config.clusters, points.width)
    centers = ArrayFile(made.centers, "float32", shape)
    layout = make_layout(ALONE, len(points), *shape, 2.0, 1)
    job = Labelling(
        Neighbours(points, layout, "gemm"), centers, 2, folder / "labels", "stamp", quiet
    )
    keys = label_all(job)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in made.rows]
    found = (
        centers.read(0, config.clusters),
        json.dumps(rows, sort_keys=True),
        keys.read(0, len(points)),
    )
    centers.close()
    keys.close()
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_cut_short_at_any_write_it_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    straight = clustered(tmp_path / "straight", SETTINGS[name])
    last = 0
    while True:
        last += 1 + last // 4
        folder = tmp_path / str(last)
        with monkeypatch.context() as patched:
            fuse = Fuse(patched, last)
            with suppress(CutShort):
                clustered(folder, SETTINGS[name])
            if fuse.count < last:
                break
        resumed = clustered(folder, SETTINGS[name])
        assert (resumed[0] == straight[0]).all(), last
        assert resumed[1] == straight[1], last
        assert (resumed[2] == straight[2]).all(), last
    assert last > 10


def test_the_state_of_other_features_or_settings_is_not_gone_on_with(tmp_path):
    x = data()
    points, largest = points_of(x)
    made = []
    for stamp, seed in (("a", 0), ("b", 1), ("b", 1)):
        config = ClusterConfig(clusters=20, iterations=2, top=1, seed=seed)
        job = CenterJob(points, largest, config, ALONE, tmp_path, stamp, quiet)
        made.append(np.load(make_centers(job).centers))
    assert (made[0] != made[1]).any()
    assert (made[1] == made[2]).all()


def test_a_damaged_state_is_named_and_not_begun_anew(tmp_path):
    clustered(tmp_path, SETTINGS["flat"])
    for name in ("flat/state.json", "labels/stamp.json"):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(whole[:-3])
        with pytest.raises(LabelError, match=rf"{name}: damaged .*remove .* to begin anew"):
            clustered(tmp_path, SETTINGS["flat"])
        (tmp_path / name).write_text(whole)
    assert (tmp_path / "flat" / "best.npy").is_file()
