"""Make a damaged folder of shards whole again: keep what is sound, name what is not.

    python -m data_pipelines.shards.repair DIR [--media] [--drop FILE] [--dry-run]

A tar that is as the manifest says stays as it is. Of another one, the samples that are complete,
described and, where an index with checksums is there, unchanged stay; the tar is written anew
without the rest, and its index, too. Missing tars and samples are listed. The manifest then holds
what is left: with samples fewer, label and feature stores must be made again.

--media   also drop what does not decode.
--drop    also drop the samples that a .jsonl names under "file" (SHARD.tar/KEY or KEY), such as
          duplicates.jsonl; the rest may be sound.

``repair.json`` lists what was done. Raises ManifestError where the manifest itself is unreadable.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipelines.shards.media import media_faults
from data_pipelines.shards.verify import same_crcs, same_index, sample_faults, why_unfit
from data_pipelines.shards.writer import Sample, index_tar, replace_shard, write_manifest
from ovtrain.schema.atomic import file_sha256, write_json
from ovtrain.schema.errors import ManifestError, exit_status
from ovtrain.schema.manifest import ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS

REPORT = "repair.json"
ASKED = "asked for (--drop)"
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError)


@dataclass
class Repair:
    """What was done: shards written anew, indexes made anew, missing shards; ``dropped``:
    SHARD.tar/KEY -> reason."""

    rewritten: list[str] = field(default_factory=list[str])
    indexed: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    dropped: dict[str, str] = field(default_factory=dict[str, str])

    def any(self) -> bool:
        return bool(self.rewritten or self.indexed or self.missing or self.dropped)


def repair(
    folder: Path,
    *,
    media: bool = False,
    drop: frozenset[str] = frozenset(),
    dry_run: bool = False,
    workers: int = 2,
) -> Repair:
    """Repair ``folder``; what was done, or with ``dry_run`` what would be."""
    manifest = ShardManifest.read(folder)
    done = Repair()
    unwanted = dict.fromkeys(drop, ASKED)
    shards, keys = list[ShardInfo](), list[str]()
    for shard in manifest.shards:
        kept = _repair_shard(folder, shard, manifest, unwanted, done, dry_run)
        if kept is not None:
            shards.append(kept[0])
            keys += kept[1]
    if not shards:
        fix = "prepare these samples again"
        raise ManifestError(str(folder), "no sample would be left", fix=fix)
    if not dry_run and done.any():
        fixed = replace(manifest, shards=tuple(shards), fingerprint=fingerprint(keys))
        write_manifest(folder, fixed)
        write_json(folder / REPORT, vars(done))
    return _without_undecodable(folder, done, workers, dry_run) if media else done


def _without_undecodable(folder: Path, done: Repair, workers: int, dry_run: bool) -> Repair:
    if dry_run and done.any():
        raise ManifestError(
            str(folder), "needs repair before its media can be decoded", fix="leave out --dry-run"
        )
    faults = dict(media_faults(folder, ShardManifest.read(folder), workers))
    if not faults:
        return done
    again = repair(folder, drop=frozenset(faults), dry_run=dry_run)
    done.rewritten = sorted({*done.rewritten, *again.rewritten})
    done.missing += again.missing
    done.dropped |= faults
    if not dry_run:
        write_json(folder / REPORT, vars(done))
    return done


def _repair_shard(
    folder: Path,
    shard: ShardInfo,
    manifest: ShardManifest,
    unwanted: dict[str, str],
    done: Repair,
    dry_run: bool,
) -> tuple[ShardInfo, list[str]] | None:
    """The shard as it is now, and its keys; None where nothing of it is left."""
    path = folder / shard.name
    if not path.is_file():
        done.missing.append(shard.name)
        return None
    stored = _stored_index(path)
    dropped: dict[str, str] = {}
    if _is_whole(path, shard, manifest):
        actual = index_tar(path, manifest.kind)
        if stored is None or not (same_index(stored, actual) and same_crcs(stored, actual)):
            done.indexed.append(shard.name)
            if not dry_run:
                actual.write(path.with_suffix(".npz"))
        unfit = sample_faults(path, actual, manifest) | _named(shard, actual.keys, unwanted)
        if not unfit:
            return shard, actual.keys
    samples = list(_sound(path, stored, manifest, unwanted, dropped))
    done.dropped |= {f"{shard.name}/{key}": reason for key, reason in dropped.items()}
    done.rewritten.append(shard.name)
    if not samples:
        return None
    keys = [key for key, _ in samples]
    return (shard if dry_run else replace_shard(path, manifest.kind, samples)), keys


def _named(shard: ShardInfo, keys: list[str], unwanted: dict[str, str]) -> dict[str, str]:
    """Those of ``keys`` that are not wanted, as KEY or SHARD.tar/KEY."""
    names = {key: unwanted.get(key) or unwanted.get(f"{shard.name}/{key}") for key in keys}
    return {key: reason for key, reason in names.items() if reason}


def _is_whole(path: Path, shard: ShardInfo, manifest: ShardManifest) -> bool:
    """Whether a tar is what the manifest says, by its hash, and complete."""
    if path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
        return False
    try:
        return len(index_tar(path, manifest.kind).keys) == shard.samples
    except ManifestError:
        return False


def _stored_index(path: Path) -> ShardIndex | None:
    try:
        return ShardIndex.read(path.with_suffix(".npz"))
    except ManifestError:
        return None


def _sound(
    path: Path,
    stored: ShardIndex | None,
    manifest: ShardManifest,
    unwanted: dict[str, str],
    dropped: dict[str, str],
) -> Iterator[Sample]:
    """The samples of a tar that may stay; why others may not goes to ``dropped``."""
    crcs = _checksums(stored, manifest)
    found = dict(_read(path))
    if stored is not None and crcs:
        found |= _placed(path, stored, crcs)  # also behind a damaged header
    for key in dict.fromkeys([*(stored.keys if stored else ()), *found]):
        reason = unwanted.get(key) or unwanted.get(f"{path.name}/{key}") or ""
        if not reason:
            reason = _why_unsound(key, found.get(key), crcs.get(key, {}), manifest)
        if reason:
            dropped[key] = reason
        else:
            yield key, found[key]


def _why_unsound(
    key: str, members: dict[str, bytes] | None, crcs: dict[str, int], manifest: ShardManifest
) -> str:
    if members is None:
        return "not in the tar any more"
    missing = set(MEMBERS[manifest.kind]) - set(members)
    if missing:
        return f"without {', '.join(sorted(missing))}"
    changed = [name for name, crc in crcs.items() if zlib.crc32(members[name]) != crc]
    if changed:
        return f"checksum differs ({', '.join(changed)})"
    return why_unfit(key, members, manifest)


def _placed(
    path: Path, stored: ShardIndex, crcs: dict[str, dict[str, int]]
) -> dict[str, dict[str, bytes]]:
    """The samples that lie where the index says, unchanged."""
    found: dict[str, dict[str, bytes]] = {}
    with open(path, "rb") as handle:
        for row, key in enumerate(stored.keys):
            members: dict[str, bytes] = {}
            for column, (name, crc) in enumerate(crcs[key].items()):
                handle.seek(max(int(stored.offsets[row, column]), 0))
                payload = handle.read(max(int(stored.sizes[row, column]), 0))
                if zlib.crc32(payload) == crc:
                    members[name] = payload
            if len(members) == len(crcs[key]):
                found[key] = members
    return found


def _checksums(stored: ShardIndex | None, manifest: ShardManifest) -> dict[str, dict[str, int]]:
    if stored is None or stored.crcs is None:
        return {}
    names = MEMBERS[manifest.kind]
    rows = zip(stored.keys, stored.crcs.tolist(), strict=True)
    return {key: dict(zip(names, row, strict=True)) for key, row in rows}


def _read(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a tar as far as it can be read; damage in a header ends it."""
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(path, mode="r:") as tar:
            for info in tar:
                payload = tar.extractfile(info)
                if payload is None:
                    continue
                found, _, name = info.name.partition(".")
                if found != key and members:
                    yield key, members
                    members = {}
                key = found
                data = payload.read()
                if len(data) == info.size:
                    members[name] = data
    except TAR_ERRORS:
        pass
    if members:
        yield key, members


def named_in(path: Path) -> frozenset[str]:
    """Names under "file" in the lines of a .jsonl. Raises ManifestError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return frozenset(str(json.loads(line)["file"]) for line in lines if line.strip())
    except (ValueError, KeyError, TypeError) as error:
        allowed = '{"file": SHARD.tar/KEY or KEY} on each line'
        raise ManifestError(str(path), f"no list ({error})", allowed=allowed) from error


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on an error of the user."""
    parser = argparse.ArgumentParser(prog="data_pipelines.shards.repair", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("--media", action="store_true", help="decode every clip and picture")
    parser.add_argument("--drop", type=Path, help=".jsonl of samples to leave out")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)

    def work() -> None:
        drop = named_in(args.drop) if args.drop else frozenset[str]()
        dry = args.dry_run
        done = repair(args.folder, media=args.media, drop=drop, dry_run=dry, workers=args.workers)
        for name, reason in sorted(done.dropped.items()):
            print(f"{'would drop' if dry else 'dropped'} {name}: {reason}")
        unknown = len(drop) - sum(reason == ASKED for reason in done.dropped.values())
        if unknown:
            print(f"{unknown} names of {args.drop} are no samples here")
        counts = {name: len(found) for name, found in vars(done).items() if found}
        said = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing to repair"
        print(f"{args.folder}: {said}" + (" (nothing was changed)" if dry else ""))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
