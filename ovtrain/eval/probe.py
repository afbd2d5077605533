"""The probe job: ``python -m ovtrain.eval.probe CONFIG.yaml [key=value ...]`` -> OUT/result.json.

Every comparison has an equal token budget. Controls stand in the same table: the architecture
untrained, the same run on shuffled labels, one frame alone, and every pixel blanked.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ovtrain.checkpoint.restore import checkpoint_folder, open_run
from ovtrain.config.load import checked, load
from ovtrain.config.probe import ProbeConfig
from ovtrain.eval.attentive_probe import attentive_probe
from ovtrain.eval.embeddings import ClipSet, ViewSpec, encode
from ovtrain.eval.intervals import wilson
from ovtrain.eval.linear_probe import linear_probe
from ovtrain.eval.ranking import rank_quality
from ovtrain.heads.reshard import read_rows
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import ConfigError, LabelError, MediaError, exit_status
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import key_hash

NOTES = (
    "Chance and every interval refer to held-out clips, whose sprites and backgrounds differ "
    "from the training clips'.",
    "Blanked: every pixel is replaced by the mean colour, so the encoder is given positions "
    "alone. It has no absolute positions, it only turns queries and keys by them, and "
    "attention over equal tokens returns the same value wherever they lie: this row is at "
    "chance by construction and shows that nothing reaches the encoder around the pixels.",
    "Permuted: a clip's patches are dealt to its positions at random. What is left above "
    "chance is carried by the two sets, which positions and which patches codec selection "
    "kept; what is lost was the pairing of place, time and content.",
    "An untrained encoder is above chance as well: read the trained rows against it, not "
    "against chance alone.",
    "The pseudo-labels come from a handcrafted, demo-only descriptor that separates these "
    "classes by itself: this table shows that the machinery learns, not what the method is "
    "worth on real video.",
)


@dataclass(frozen=True)
class Split:
    """S of a set's clips, ``rows``, with their classes (S,)."""

    clips: ClipSet
    rows: list[int]
    labels: Tensor


class ProbeJob:
    def __init__(self, config: ProbeConfig) -> None:
        self.config = config
        self.skipped: list[dict[str, str]] = []
        about = read_classes(Path(config.classes))
        self.classes: list[str] = about["classes"]
        self.train = self._split(
            config.train_shards, about["labels"], limit=config.labels_per_class
        )
        self.heldout = self._split(config.heldout_shards, about["labels"])
        self.rows: list[dict[str, Any]] = []
        self._check_budget()

    def _check_budget(self) -> None:
        """Equal tokens for frames and codec. Raises ConfigError."""
        c, per_frame = self.config, self.heldout.clips.grid.tokens_per_frame
        if c.token_budget != c.chunks * per_frame:
            raise ConfigError(
                f"token_budget={c.token_budget}",
                f"chunks={c.chunks} frames of {per_frame} patches have another budget",
                allowed=f"{c.chunks * per_frame}",
                fix="set token_budget, or choose chunks so that both are equal",
            )

    def _split(self, folder: str, labels: dict[str, int], limit: int = 0) -> Split:
        """The first ``limit`` readable clips of each class; 0 = all."""
        clips = ClipSet(folder, self.config.cache_dir)
        readable = self._readable(clips)
        stems = [Path(clips.reader.meta(i).media).stem for i in readable]
        unknown = [stem for stem in stems if stem not in labels]
        if unknown:
            raise LabelError(
                self.config.classes,
                f"no class for {len(unknown)} clips, the first {unknown[0]}",
                fix="name the classes file that belongs to these clips",
            )
        found = torch.tensor([labels[stem] for stem in stems])
        of_class = [torch.nonzero(found == k).flatten() for k in range(len(self.classes))]
        rows = torch.cat([r[: limit or len(r)] for r in of_class]).sort().values
        return Split(clips, [readable[row] for row in rows.tolist()], found[rows])

    def _readable(self, clips: ClipSet) -> list[int]:
        """Samples that can be read; the others are named and counted, and cost nothing else."""

        def fault(i: int) -> str:
            try:
                clips.reader.meta(i)
                clips.sample(i, self.spec("codec"))
            except MediaError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(self.config.workers) as pool:
            faults = list(pool.map(fault, range(len(clips))))
        for i, reason in enumerate(faults):
            if reason:
                print(f"skipped {reason}", flush=True)
                self.skipped.append({"file": clips.reader.name(i), "reason": reason})
        if all(faults):
            raise MediaError(
                str(clips.reader.folder), "no clip can be read", fix="run `ovtrain data verify`"
            )
        return [i for i, reason in enumerate(faults) if not reason]

    def notes(self) -> list[str]:
        count = len(self.skipped)
        return [f"{count} clips could not be read and were left out."] if count else []

    def spec(self, view: str, control: Literal["", "blanked", "permuted"] = "") -> ViewSpec:
        return ViewSpec(view, self.config.token_budget, self.config.chunks, control)

    def encode(self, encoder: Encoder, split: Split, spec: ViewSpec) -> tuple[Tensor, Tensor]:
        """tokens (S, n, D) bfloat16, pooled (S, D) float32."""
        c = self.config
        # Blanked clips differ in rounding errors alone, and those of bfloat16 look like features.
        bf16 = c.bf16 and spec.control != "blanked"
        parts = list(
            encode(
                encoder.eval(),
                split.clips,
                split.rows,
                spec,
                size=c.batch,
                workers=c.workers,
                bf16=bf16,
            )
        )
        return (
            torch.cat([tokens.bfloat16() for tokens, _ in parts]),
            torch.cat([pooled for _, pooled in parts]),
        )

    def linear(self, train: Tensor, test: Tensor) -> float:
        """Accuracy of a linear probe on mean-pooled tokens."""
        found = linear_probe(
            train.float().mean(1), self.train.labels, test.float().mean(1), len(self.classes)
        )
        return self._accuracy(found)

    def attentive(self, train: Tensor, test: Tensor, heads: int, seed: int) -> float:
        c = self.config
        found = attentive_probe(
            train,
            self.train.labels,
            test,
            len(self.classes),
            heads=heads,
            epochs=c.epochs,
            batch=c.batch,
            lr=c.attentive_lr,
            seed=seed,
        )
        return self._accuracy(found)

    def _accuracy(self, found: Tensor) -> float:
        return (found == self.heldout.labels).float().mean().item()

    def add(
        self, probe: str, encoder: str, spec: ViewSpec, tokens: int, scores: list[float]
    ) -> None:
        """A row of the table; its interval is of the mean over the held-out clips."""
        mean = sum(scores) / len(scores)
        low, high = wilson(mean, len(self.heldout.labels))
        row = {"probe": probe, "encoder": encoder, "view": spec.label, "tokens": tokens}
        self.rows.append(row | {"scores": scores, "mean": mean, "low": low, "high": high})
        print(
            f"{probe:9s} {encoder:16s} {spec.label:14s} {mean:.3f} [{low:.3f}, {high:.3f}]",
            flush=True,
        )


def read_classes(path: Path) -> dict[str, Any]:
    """{"classes": [names], "labels": {clip stem: class}}. Raises LabelError."""
    allowed = '{"classes": [names], "labels": {clip stem: place of its class in that list}}'
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        numbers = set(about["labels"].values())
        strange = numbers - set(range(len(about["classes"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(str(path), f"not a classes file ({error!r})", allowed=allowed) from error
    if strange or not numbers:
        found = f"labels name the classes {sorted(strange, key=str)}" if strange else "no labels"
        raise LabelError(str(path), found, allowed=allowed)
    return about


def compare(job: ProbeJob, name: str, encoders: list[Encoder], specs: list[ViewSpec]) -> None:
    """Linear rows of one kind of encoder, one score per encoder; attentive rows for the first
    one."""
    for spec in specs:
        linear: list[float] = []
        for number, encoder in enumerate(encoders):
            train, _ = job.encode(encoder, job.train, spec)
            test, _ = job.encode(encoder, job.heldout, spec)
            linear.append(job.linear(train, test))
            if number == 0 and spec.name in ("codec", "frames") and not spec.control:
                heads = encoder.config.size.heads
                attentive = job.attentive(train, test, heads, seed=0)
                job.add("attentive", name, spec, train.shape[1], [attentive])
        job.add("linear", name, spec, train.shape[1], linear)


def ranking(job: ProbeJob, runs: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Rank quality of held-out pseudo-labels under each run's head."""
    c = job.config
    store = LabelStore.read(c.heldout_labels, job.heldout.clips.reader.manifest.fingerprint)
    keys = job.heldout.clips.reader.keys
    hashes = key_hash([keys[row] for row in job.heldout.rows])
    labels = [torch.from_numpy(store.lookup(h).copy()) for h in hashes]
    found: list[dict[str, Any]] = []
    for name, paths in runs.items():
        pairs: list[tuple[float, float]] = []
        for run in paths:
            encoder, _ = open_run(run)
            _, pooled = job.encode(encoder, job.heldout, job.spec("codec"))
            rows = read_rows(checkpoint_folder(run), c.source, 0, store.classes)
            unit = torch.nn.functional.normalize
            pairs.append(rank_quality(unit(pooled) @ unit(rows["rows"].float()).T, labels))
        percentiles, areas = zip(*pairs, strict=True)
        row = {"encoder": name, "samples": len(labels), "seeds": len(paths)}
        found.append(
            row | {"percentile": sum(percentiles) / len(paths), "auc": sum(areas) / len(paths)}
        )
    return found


def run(config: ProbeConfig) -> Path:
    """All rows and notes -> ``out/result.json``."""
    torch.set_num_threads(max(torch.get_num_threads(), config.workers))
    job = ProbeJob(config)
    trained = [open_run(path)[0] for path in config.runs]
    untrained = [build_encoder(trained[0].config, seed=1000 + k) for k in range(len(trained))]
    codec, frames = job.spec("codec"), job.spec("frames")
    alone = [job.spec("middle frame"), job.spec("random frame")]
    compare(job, "trained", trained, [codec, frames, *alone])
    controls = [job.spec("codec", "permuted"), job.spec("codec", "blanked")]
    compare(job, "trained", trained[:1], controls)
    compare(job, "untrained", untrained, [codec, frames])
    runs = {"trained": list(config.runs)}
    if config.shuffled:
        compare(job, "shuffled labels", [open_run(config.shuffled)[0]], [codec])
        runs["shuffled labels"] = [config.shuffled]
    result = {
        "classes": job.classes,
        "chance": 1 / len(job.classes),
        "heldout_clips": len(job.heldout.labels),
        "rows": job.rows,
        "ranking": ranking(job, runs) if config.heldout_labels else [],
        "notes": [*NOTES, *job.notes()],
        "skipped_clips": job.skipped,
        "config_hash": sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:16],
    }
    path = Path(config.out) / "result.json"
    write_json(path, result)
    return path


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def work() -> None:
        config = load(ProbeConfig, argv[0], argv[1:])
        checked(argv[0], config)
        print(run(config))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
