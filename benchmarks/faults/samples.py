"""Damaged samples, shards and labels, before a run and under it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import numpy as np

from ovtrain.data.shards import ShardReader
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import key_hash
from tests.helpers.damage import DAMAGES, payloads
from tests.helpers.damage import Damage as Harm
from tests.helpers.training import metrics

from .case import Case
from .fault import FINISHED, REFUSED, Fault
from .judge import quarantined
from .process import kill_all, kill_all_after
from .site import CLASSES, SAMPLES, write_data

KILLED = (-signal.SIGKILL,)
MOST = 8
"""The last step at which samples go bad under a run, that they may be met."""
CODEC = {"codec": 1, "frames": 0, "tiling": 0}
"""The view that reads all of a sample, energies and every frame."""
JPEG = ("jpeg-truncated", "jpeg-flips", "jpeg-overwritten", "jpeg-bytes-removed", "noise")
ENERGY = ("energy-truncated", "energy-empty", "energy-of-floats", "energy-of-fewer-frames")


def _damaged(kind: str, harms: tuple[str, ...], case: Case) -> None:
    """One to three samples of a kind, damaged before the shards were written."""
    chosen = sorted(case.random.sample(range(SAMPLES), case.random.randint(1, 3)))
    how = {number: case.random.choice(harms) for number in chosen}
    case.facts["harms"] = {f"{kind}-{n:04d}": DAMAGES[kind][harm] for n, harm in how.items()}

    def damage(of: str, number: int, given: dict[str, bytes]) -> dict[str, bytes]:
        if of != kind or number not in how:
            return given
        rng = np.random.default_rng(case.random.getrandbits(32))
        return DAMAGES[kind][how[number]].change(given, rng)

    case.own_data(damage)


def _each_named_or_used(case: Case) -> list[str]:
    """Each damaged sample for a reason that it may have, no other one; one that decoders cannot
    tell from a sound one may be used."""
    harms: dict[str, Harm] = case.facts["harms"]
    found = {name.split("/")[1]: why for _, name, why, _ in quarantined(case.out)}
    wrong = [f"{n}: {why}" for n, why in found.items() if why not in _of(harms, n).named]
    return wrong + [f"{n} was used" for n, h in harms.items() if n not in found and not h.good]


def _of(harms: dict[str, Harm], name: str) -> Harm:
    return harms.get(name, Harm(lambda given, _: given, frozenset()))


def _sample(name: str, kind: str, *harms: str) -> Fault:
    return Fault(
        *(name, "sample", kill_all, KILLED), prepare=partial(_damaged, kind, harms),
        check=_each_named_or_used, lasting=True, settings={"data": {"views": CODEC}},
    )  # fmt: skip


def _shard(case: Case) -> ShardIndex:
    """A random shard of the case's own data, a fact."""
    kind = case.random.choice(sorted(CLASSES))
    names = [shard.name for shard in ShardManifest.read(case.data / kind).shards]
    tar = case.random.choice(names)
    case.facts |= {"kind": kind, "tar": tar}
    return ShardIndex.read((case.data / kind / tar).with_suffix(".npz"))


def _wrong_index(case: Case) -> None:
    """Rows of an index point elsewhere."""
    case.own_data()
    index = _shard(case)
    rows = sorted(case.random.sample(range(len(index.keys)), case.random.randint(1, 3)))
    offsets = index.offsets.copy()
    offsets[rows] = offsets[rows] + case.random.choice((512, -512, 7, 10**12))
    path = (case.data / str(case.facts["kind"]) / str(case.facts["tar"])).with_suffix(".npz")
    ShardIndex(index.keys, offsets, index.sizes, index.crcs).write(path)
    case.facts["hurt"] = {f"{case.facts['tar']}/{index.keys[row]}" for row in rows}


def _all_said(category: str, case: Case) -> list[str]:
    found = {(name, why) for _, name, why, _ in quarantined(case.out)}
    hurt: set[str] = case.facts["hurt"]
    wanted = {(name, category) for name in hurt}
    return [] if found == wanted else [f"quarantine names {found}, not {wanted}"]


def _while_it_runs(change: Callable[[Case, os.PathLike[str], int], None], case: Case) -> None:
    """A tar is changed in place under its readers, at a moment that leaves samples to be read."""
    case.moment(early=False, least=1, most=MOST)
    path = case.data / str(case.facts["kind"]) / str(case.facts["tar"])
    change(case, path, len(case.keep(path)))


def _cut(case: Case, path: os.PathLike[str], size: int) -> None:
    os.truncate(path, case.random.randrange(size // 4))


def _zero(case: Case, path: os.PathLike[str], size: int) -> None:
    with open(path, "r+b") as handle:
        handle.write(bytes(size))


def _own_data_and_shard(case: Case) -> None:
    case.own_data()
    _shard(case)


def _note_lost(case: Case) -> None:
    case.facts["lost"] = quarantined(case.out)


def _note_put_back_and_go_back(case: Case) -> None:
    _note_lost(case)
    case.put_back()
    case.go_back()


def _lost_of_that_tar(*categories: str) -> Callable[[Case], list[str]]:
    def check(case: Case) -> list[str]:
        lost: list[tuple[str, str, str, int]] = case.facts["lost"]
        here = all(name.startswith(f"{case.facts['tar']}/") for _, name, _, _ in lost)
        known = all(why in categories for _, _, why, _ in lost)
        return [] if lost and here and known else [f"lost {lost}"]

    return check


def _zero_all_pictures(case: Case) -> None:
    case.moment(early=False, least=1, most=MOST)
    for path in sorted((case.data / "image").glob("*.tar")):
        _zero(case, path, len(case.keep(path)))


def _other_shards(case: Case) -> None:
    """Equal keys over other samples, written under a killed run."""
    for kind in CLASSES:
        for path in sorted((case.data / kind).iterdir()):
            case.keep(path)
    write_data(case.data, lambda kind, number, given: {**given, **_turned(case, kind, given)})


def _turned(case: Case, kind: str, given: dict[str, bytes]) -> dict[str, bytes]:
    other = payloads(kind, case.random.randrange(SAMPLES, 2 * SAMPLES))
    return {name: data for name, data in other.items() if name in given}


def _without_a_shard(case: Case) -> None:
    _shard(case)
    path = case.data / str(case.facts["kind"]) / str(case.facts["tar"])
    case.keep(path)
    path.unlink()


def _labels(case: Case) -> LabelStore:
    case.facts["kind"] = case.random.choice(sorted(CLASSES))
    return LabelStore.read(case.data / f"{case.facts['kind']}-labels")


def _out_of_range(case: Case) -> None:
    store = _labels(case)
    path = case.data / f"{case.facts['kind']}-labels" / "ids.npy"
    case.keep(path)
    ids = np.array(store.ids)
    ids[case.random.randrange(len(ids))] = case.facts["label"] = store.classes
    np.save(path, ids)


def _no_labels(case: Case) -> None:
    store = _labels(case)
    folder = case.data / f"{case.facts['kind']}-labels"
    for name in ("store.json", "keys.npy", "offsets.npy", "ids.npy"):
        case.keep(folder / name)
    (folder / "store.json").unlink()
    assert len(store.keys)


def _some_unlabelled(case: Case) -> None:
    """The store does not know some samples."""
    case.own_data()
    store = _labels(case)
    kind = str(case.facts["kind"])
    keys = ShardReader(case.data / kind).keys
    case.facts["gone"] = gone = case.random.sample(keys, 3)
    known = [key for key in keys if key not in gone]
    kept = [store.lookup(hashed) for hashed in key_hash(known)]
    made = LabelStore.build(known, kept, store.classes, store.fingerprint)
    made.write(case.data / f"{kind}-labels")


def _counted_and_named(case: Case) -> list[str]:
    logs = "".join(path.read_text() for path in (case.out / "logs").glob("rank-*.log"))
    gone: list[str] = case.facts["gone"]
    unnamed = [key for key in gone if f"/{key} has no labels" not in logs]
    counted = [row["unlabelled_samples"] for row in metrics(case.out)][-1:]
    wrong = unnamed or not any(counted)
    return [f"not named: {unnamed}, counted: {counted}"] if wrong else []


def _own(case: Case) -> None:
    case.own_data()


def _refused(name: str, after: Callable[[Case], None], *says: str) -> Fault:
    return Fault(
        *(name, "input", kill_all_after(1), KILLED), prepare=_own, after=after, refused=says,
        mend=Case.put_back,
    )  # fmt: skip


FAULTS = (
    _sample("corrupt JPEG", "image", *JPEG),
    _sample("corrupt video", "video", "overwritten", "bytes-removed", "garbage", "zeros"),
    _sample("truncated video", "video", "truncated", "empty"),
    _sample("video of one frame", "video", "one-frame"),
    _sample("all-intra video", "video", "all-intra"),
    _sample("damaged energies", "video", *ENERGY),
    Fault(
        *("wrong tar index", "sample", kill_all, KILLED), prepare=_wrong_index,
        check=partial(_all_said, "index is wrong"), lasting=True,
    ),
    Fault(
        *("tar truncated under the run", "sample", partial(_while_it_runs, _cut), (FINISHED,)),
        (r"skipped {tar}/\S+: cut short",),
        prepare=_own_data_and_shard, after=_note_put_back_and_go_back,
        check=_lost_of_that_tar("cut short"),
    ),
    Fault(
        *("tar zeroed under the run", "sample", partial(_while_it_runs, _zero), (FINISHED,)),
        (r"skipped {tar}/\S+: index is wrong",),
        prepare=_own_data_and_shard, after=_note_put_back_and_go_back,
        check=_lost_of_that_tar("index is wrong", "checksum differs"),
    ),
    Fault(
        *("too many bad samples in a row", "sample", _zero_all_pictures, (REFUSED,)),
        (r"3 unreadable samples in a row, the last image-\d+\.tar/image-\d+ \(index is wrong",),
        prepare=_own, after=_note_put_back_and_go_back,
        settings={"data": {"max_bad_in_a_row": 3}},
    ),
    _refused(
        "shards replaced before a resumption", _other_shards,
        r"error: data\.sources: the shards of video, image are not those the checkpoint read",
    ),
    _refused(
        "shard missing", _without_a_shard,
        r"error: \S+{kind}/manifest\.json: {tar} is missing",
    ),
    _refused(
        "label out of range", _out_of_range,
        r"error: \S+{kind}-labels/ids\.npy: ids from \d+ to {label}; allowed: 0 to \d+",
    ),
    _refused("label store missing", _no_labels, r"error: \S+{kind}-labels/store\.json: no labels"),
    Fault(
        *("samples without labels", "input", kill_all, KILLED), prepare=_some_unlabelled,
        check=_counted_and_named, lasting=True,
    ),
)  # fmt: skip
