"""Check a folder of shards against its manifest: files, hashes, indexes, every sample's members.

    python -m data_pipelines.shards.verify DIR [--media] [--workers N]

Reads everything once; with ``--media`` decodes every clip and picture, too, in processes that may
die. Raises one ManifestError that names the faults.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.progress import Progress
from data_pipelines.shards.media import media_faults
from data_pipelines.shards.writer import index_tar
from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.errors import ManifestError, exit_status
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import ENERGY, MEMBERS, META, SampleMeta

SHOWN = 10
FIX = "repair the folder with `ovtrain data repair`, or copy it again"


def verify(
    folder: Path, *, hashes: bool = True, media: bool = False, workers: int = 2
) -> ShardManifest:
    """The manifest, when all the shards are as it says."""
    manifest = ShardManifest.read(folder)
    manifest.check_files(folder, hashes=hashes)
    faults: list[str] = []
    keys: list[str] = []
    with Progress("verify", len(manifest.shards), "shards") as progress:
        for shard in manifest.shards:
            try:
                index = _check_index(folder, shard, manifest, hashes)
                keys += index.keys
                found = sample_faults(folder / shard.name, index, manifest)
                faults += [f"{shard.name}/{key}: {fault}" for key, fault in found.items()]
            except ManifestError as error:
                faults.append(str(error))
            progress.advance()
    if not faults and fingerprint(keys) != manifest.fingerprint:
        faults.append("the sample keys are not those of the manifest's fingerprint")
    if not faults and len(set(keys)) != len(keys):
        faults.append("a sample key occurs twice")
    if media and not faults:
        faults += [f"{name}: {fault}" for name, fault in media_faults(folder, manifest, workers)]
    if faults:
        more = f"; {len(faults) - SHOWN} more" if faults[SHOWN:] else ""
        raise ManifestError(str(folder / MANIFEST), "; ".join(faults[:SHOWN]) + more, fix=FIX)
    return manifest


def _check_index(
    folder: Path, shard: ShardInfo, manifest: ShardManifest, hashes: bool
) -> ShardIndex:
    path = folder / shard.name
    stored, actual = ShardIndex.read(path.with_suffix(".npz")), index_tar(path, manifest.kind)
    if not same_index(stored, actual) or len(actual.keys) != shard.samples:
        raise ManifestError(
            path.with_suffix(".npz").name,
            f"index of {len(stored.keys)} samples does not fit a tar of {len(actual.keys)} "
            f"(manifest: {shard.samples})",
        )
    if hashes and stored.crcs is not None and not same_crcs(stored, actual):
        raise ManifestError(path.with_suffix(".npz").name, "holds other checksums than its tar")
    return actual


def same_index(stored: ShardIndex, actual: ShardIndex) -> bool:
    """Whether a stored index places the members where the tar has them."""
    return (
        stored.keys == actual.keys
        and np.array_equal(stored.offsets, actual.offsets)
        and np.array_equal(stored.sizes, actual.sizes)
    )


def same_crcs(stored: ShardIndex, actual: ShardIndex) -> bool:
    """Whether a stored index has the checksums of what lies in the tar; an older one has none."""
    if stored.crcs is None or actual.crcs is None:
        return False
    return np.array_equal(stored.crcs, actual.crcs)


def sample_faults(path: Path, index: ShardIndex, manifest: ShardManifest) -> dict[str, str]:
    """What is wrong with samples of a tar, by key: metadata and energies."""
    faults: dict[str, str] = {}
    with open(path, "rb") as handle:
        for row, key in enumerate(index.keys):
            members = {
                name: _payload(handle, index, row, column)
                for column, name in enumerate(MEMBERS[manifest.kind])
                if name in (META, ENERGY)
            }
            fault = why_unfit(key, members, manifest)
            if fault:
                faults[key] = fault
    return faults


def _payload(handle: io.BufferedReader, index: ShardIndex, row: int, column: int) -> bytes:
    handle.seek(int(index.offsets[row, column]))
    return handle.read(int(index.sizes[row, column]))


def why_unfit(key: str, members: Mapping[str, bytes], manifest: ShardManifest) -> str:
    """Why a sample does not belong in these shards, by its metadata and energies, or ""."""
    try:
        meta = SampleMeta.from_json(members[META], key)
    except ManifestError as error:
        return error.found
    if (meta.key, meta.kind) != (key, manifest.kind):
        return f"metadata of {meta.kind} {meta.key}"
    return _unfit_energy(members[ENERGY], manifest) if ENERGY in members else ""


def _unfit_energy(payload: bytes, manifest: ShardManifest) -> str:
    side = (manifest.height // manifest.patch, manifest.width // manifest.patch)
    try:
        energy = np.load(io.BytesIO(payload), allow_pickle=False)
    except NOT_AN_ARRAY as error:
        return f"energy is damaged ({error})"
    if energy.shape != (manifest.frames, *side) or energy.dtype != np.uint16:
        return f"energy is damaged ({energy.dtype} {energy.shape})"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on a fault."""
    parser = argparse.ArgumentParser(prog="data_pipelines.shards.verify", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("--media", action="store_true", help="decode every clip and picture")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)

    def work() -> None:
        manifest = verify(args.folder, media=args.media, workers=args.workers)
        held = f"{manifest.samples} samples in {len(manifest.shards)} shards"
        print(f"{args.folder}: {held}, all as stated")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
