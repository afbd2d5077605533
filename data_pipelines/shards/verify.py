"""Check a folder of shards against its manifest: files, hashes, indexes, every sample's members.

    python -m data_pipelines.shards.verify DIR

Raises one ManifestError that names the faults; reads everything once, decodes no media.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from data_pipelines.shards.writer import index_tar
from ovtrain.schema.errors import ManifestError, exit_status
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import ENERGY, MEMBERS, META, SampleMeta

SHOWN = 10


def verify(folder: Path, hashes: bool = True) -> ShardManifest:
    """The manifest, when all the shards are as it says."""
    manifest = ShardManifest.read(folder)
    manifest.check_files(folder, hashes=hashes)
    faults: list[str] = []
    keys: list[str] = []
    for shard in manifest.shards:
        try:
            index = _check_index(folder, shard, manifest, hashes)
        except ManifestError as error:
            faults.append(str(error))
            continue
        keys += index.keys
        faults += _check_samples(folder / shard.name, index, manifest)
    if not faults and fingerprint(keys) != manifest.fingerprint:
        faults.append("the sample keys are not those of the manifest's fingerprint")
    if not faults and len(set(keys)) != len(keys):
        faults.append("a sample key occurs twice")
    if faults:
        more = f"; {len(faults) - SHOWN} more" if faults[SHOWN:] else ""
        raise ManifestError(
            str(folder / MANIFEST),
            "; ".join(faults[:SHOWN]) + more,
            fix="write the shards again",
        )
    return manifest


def _check_index(
    folder: Path, shard: ShardInfo, manifest: ShardManifest, hashes: bool
) -> ShardIndex:
    path = folder / shard.name
    stored, actual = ShardIndex.read(path.with_suffix(".npz")), index_tar(path, manifest.kind)
    same = stored.keys == actual.keys and (
        np.array_equal(stored.offsets, actual.offsets)
        and np.array_equal(stored.sizes, actual.sizes)
    )
    if not same or len(actual.keys) != shard.samples:
        raise ManifestError(
            path.with_suffix(".npz").name,
            f"index of {len(stored.keys)} samples does not fit a tar of {len(actual.keys)} "
            f"(manifest: {shard.samples})",
        )
    if hashes and stored.crcs is not None and np.any(stored.crcs != actual.crcs):
        raise ManifestError(path.with_suffix(".npz").name, "holds other checksums than its tar")
    return actual


def _check_samples(path: Path, index: ShardIndex, manifest: ShardManifest) -> list[str]:
    """Faults of one tar's metadata and energy maps."""
    faults: list[str] = []
    names = MEMBERS[manifest.kind]
    side = (manifest.height // manifest.patch, manifest.width // manifest.patch)
    with open(path, "rb") as handle:
        for row, key in enumerate(index.keys):
            where = f"{path.name}/{key}"

            def member(name: str, row: int = row) -> bytes:
                column = names.index(name)
                handle.seek(int(index.offsets[row, column]))
                return handle.read(int(index.sizes[row, column]))

            try:
                meta = SampleMeta.from_json(member(META), where)
                if (meta.key, meta.kind) != (key, manifest.kind):
                    faults.append(f"{where}: metadata of {meta.kind} {meta.key}")
                if ENERGY in names:
                    energy = np.load(io.BytesIO(member(ENERGY)), allow_pickle=False)
                    if energy.shape != (manifest.frames, *side) or energy.dtype != np.uint16:
                        faults.append(f"{where}: energy is {energy.dtype} {energy.shape}")
            except (ManifestError, ValueError) as error:
                faults.append(f"{where}: {error}")
    return faults


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on a fault."""
    parser = argparse.ArgumentParser(prog="data_pipelines.shards.verify")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder

    def work() -> None:
        manifest = verify(folder)
        held = f"{manifest.samples} samples in {len(manifest.shards)} shards"
        print(f"{folder}: {held}, all as stated")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
