"""One rank of a clustering of a feature store: ``cluster_job.py STORE OUT SETTINGS_JSON``.

SETTINGS: a list of {"name", ...ClusterConfig keys}; of each, centers and top-3 labels are made
below OUT/name, and what came out is written to OUT/name.npz by the first rank.
"""

import json
import sys
from pathlib import Path

import numpy as np

from clustering.assign import Labelling, label_all
from clustering.centers import CenterJob, make_centers
from clustering.kmeans.array_file import ArrayFile
from clustering.neighbours import Neighbours, make_layout
from clustering.points import Points
from clustering.search import unpack_array
from clustering.survey import survey
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.context import die_with_launcher, start_world, stop_world
from ovtrain.schema.features import FeatureStore


def main(store_folder: str, out_folder: str, settings: str) -> None:
    die_with_launcher()
    world, store, out = start_world(), FeatureStore(store_folder), Path(out_folder)
    say = print if world.is_main else lambda _: None
    for chosen in json.loads(settings):
        folder = out / chosen.pop("name")
        config = ClusterConfig(**chosen)
        found = survey(store, world, folder.with_suffix(".survey.npz"), say)
        bad = found.bad(spherical=config.spherical, policy=config.bad)
        points = Points(store, world.device, config.spherical, bad)
        made = make_centers(CenterJob(points, found.largest, config, world, folder, "stamp", say))
        shape = (config.clusters, store.width)
        centers = ArrayFile(made.centers, "float32", shape)
        layout = make_layout(world, len(store), *shape, config.memory_gib, config.center_shards)
        neighbours = Neighbours(points, layout, config.engine)
        keys = label_all(Labelling(neighbours, centers, 3, folder / "labels", "stamp", say))
        if world.is_main:
            ids, squared = unpack_array(keys.read(0, len(store)))
            objective = [row["objective"] for row in made.rows]
            table = centers.read(0, config.clusters)
            np.savez(
                folder.with_suffix(".npz"), centers=table, objective=objective, ids=ids,
                squared=squared,
            )  # fmt: skip
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
