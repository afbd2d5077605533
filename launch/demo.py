"""``ovtrain demo``: clips (generated or own) -> shards -> labels -> two stages -> probe -> report.

    OUT/clips/{train,heldout}  OUT/data/{train,heldout}  OUT/labels/{train,heldout}-{video,image}
    OUT/runs/{seed-N,shuffled}/{stage1,stage2}  OUT/probe/result.json  OUT/report.html
    OUT/{demo.json,stages.json,skipped.jsonl}  OUT/configs  OUT/logs  OUT/stages

Every stage is a job of its own, started by module name. With ``--videos`` there are no classes and
no held-out clips, so nothing is probed, and the report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.commands.options import write_resolved
from launch.demo_fit import fit_clusters, fit_ranks, fit_training, own_sources
from launch.demo_summary import merge_skipped, print_summary
from launch.display import choose_display
from launch.local import train_command
from launch.preflight import preflight
from launch.processes import module_command
from launch.stages import Stage, StageFailed, StageRunner
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.demo import DemoConfig
from ovtrain.config.load import checked, find_config, load
from ovtrain.config.probe import ProbeConfig
from ovtrain.config.train import TrainConfig
from ovtrain.observability.history import read_object
from ovtrain.observability.report import write_report
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import ConfigError, OvtrainError
from ovtrain.schema.lock import take
from ovtrain.schema.manifest import MANIFEST, ShardManifest
from ovtrain.schema.versions import GENERATOR, PIPELINE

DEMO = "demo/demo"
NO_CLASSES = "the given videos have no classes, so there is nothing to probe"
SWITCHED_OFF = "probe=false"
STORE, LABEL_PAGE = Path("labels") / "store.json", "report.html"


OWN_VIDEOS = ("seeds=1", "control=false")
"""Without classes nothing reads further runs; who asks for them gets them."""


def load_demo(overrides: Sequence[str], seed: int | None, *, own_videos: bool) -> DemoConfig:
    """The shipped demo config with overrides; the seed reaches every stage. Raises ConfigError."""
    assumed = OWN_VIDEOS if own_videos else ()
    config = load(DemoConfig, find_config(DEMO), [*assumed, *overrides])
    config = replace(config, seed=config.seed if seed is None else seed)
    checked(DEMO, config)
    # Typos in the overrides of later stages are found now, not when their turn has come.
    load(TrainConfig, find_config(config.stage1), config.stage1_set)
    load(TrainConfig, find_config(config.stage2), config.stage2_set)
    load(ProbeConfig, None, config.probe_set)
    return replace(
        config,
        prepare=replace(config.prepare, seed=config.seed),
        video_clusters=replace(config.video_clusters, seed=config.seed),
        image_clusters=replace(config.image_clusters, seed=config.seed),
    )


class Demo:
    """One output folder; ``run`` goes through the stages in order."""

    def __init__(self, config: DemoConfig, out: Path, videos: Path | None = None) -> None:
        self.config, self.out, self.videos = config, out, videos
        self.stages = StageRunner(out, choose_display())
        self.notes: list[str] = []

    def run(self) -> int:
        """All stages, then the summary. Returns the exit status."""
        take(self.out, "--out")
        self._check_folder()
        write_resolved(self.config, self.out / "config.yaml")
        self._write_about()
        try:
            self._data()
            self._labels()
            self._training()
            self._probe()
        except OvtrainError as failed:
            self._finish()
            print(f"error: {failed}", file=sys.stderr)
            return failed.status if isinstance(failed, StageFailed) else 2
        report = self._finish()
        print_summary(self.out, self.stages.records, self.notes, report)
        return 0

    def _finish(self) -> Path:
        """What is written even when a stage failed: notes, skipped files, the report."""
        self._write_about()
        merge_skipped(self.out)
        return write_report([self.out])

    def _check_folder(self) -> None:
        """A folder holds one demo: of the generated clips, or of one folder of videos."""
        before = read_object(self.out / "demo.json")
        if before is not None and before.get("clips", self._clips()) != self._clips():
            raise ConfigError(
                f"--out {self.out}",
                f"holds a demo of {before['clips']}",
                fix="choose another --out for this one",
            )

    def _clips(self) -> str:
        return "generated clips" if self.videos is None else str(self.videos.resolve())

    def _write_about(self) -> None:
        about = {"command": ["ovtrain", *sys.argv[1:]], "clips": self._clips(), "notes": self.notes}
        write_json(self.out / "demo.json", about)

    def _data(self) -> None:
        if self.videos is not None:
            self._prepare("train", self.videos)
            return
        self._generate()
        self._prepare("train", self.out / "clips" / "train")
        self._prepare("heldout", self.out / "clips" / "heldout", images_per_clip=0)

    def _generate(self) -> None:
        config, clips = self.config, self.out / "clips"
        arguments = {
            "--out": clips,
            "--seed": config.seed,
            "--train-clips": config.train_clips,
            "--heldout-clips": config.heldout_clips,
            "--size": config.prepare.size,
            "--frames": config.prepare.frames,
            "--workers": config.prepare.workers,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        outputs = [clips / "classes.json", clips / "train", clips / "heldout"]
        version = f"generator {GENERATOR}"
        self._job("generate", "data_pipelines.synthetic", words, outputs=outputs, state=version)

    def _prepare(self, split: str, videos: Path, **changed: int) -> None:
        config = replace(self.config.prepare, **changed)
        path = write_resolved(config, self.out / "configs" / f"prepare-{split}.yaml")
        folder = self.out / "data" / split
        self._job(
            f"prepare-{split}",
            "data_pipelines.prepare",
            [str(videos), "--out", str(folder), "--config", str(path), "--exclude", str(self.out)],
            inputs=[path],
            outputs=[
                folder / kind / MANIFEST
                for kind in ("video", "image")[: 2 if config.images_per_clip else 1]
            ],
            state=f"pipeline {PIPELINE}\n{listing(videos, exclude=self.out)}",
        )

    def _labels(self) -> None:
        configs: dict[str, ClusterConfig] = {}
        for kind, asked in (
            ("video", self.config.video_clusters),
            ("image", self.config.image_clusters),
        ):
            shards = self.out / "data" / "train" / kind
            fitted, note = fit_clusters(asked, ShardManifest.read(shards).samples, kind)
            self.notes += [note] if note else []
            self._cluster(f"train-{kind}", shards, fitted)
            self._label_page(f"train-{kind}", shards)
            configs[kind] = fitted
        if self.videos is None:
            centers = self.out / "labels" / "train-video" / "centroids"
            shards = self.out / "data" / "heldout" / "video"
            self._cluster("heldout-video", shards, configs["video"], centers)
        if self.config.control:
            for kind in ("video", "image"):
                self._shuffle(kind)

    def _cluster(
        self, name: str, shards: Path, config: ClusterConfig, centers: Path | None = None
    ) -> None:
        path = write_resolved(config, self.out / "configs" / f"cluster-{name}.yaml")
        folder = self.out / "labels" / name
        words = [str(shards), "--out", str(folder), "--config", str(path)]
        inputs = [path, shards / MANIFEST]
        if centers is not None:
            words += ["--centroids", str(centers)]
            inputs.append(centers / "centroids.npy")
        self._job(f"cluster-{name}", "clustering.run", words, inputs, [folder / STORE])

    def _label_page(self, name: str, shards: Path) -> None:
        folder, classes = self.out / "labels" / name, self.out / "clips" / "classes.json"
        words = [str(folder), "--shards", str(shards)]
        inputs = [folder / STORE, folder / "labels" / "ids.npy", shards / MANIFEST]
        if self.videos is None:
            words += ["--classes", str(classes)]
            inputs.append(classes)
        self._job(f"report-{name}", "clustering.report", words, inputs, [folder / LABEL_PAGE])

    def _shuffle(self, kind: str) -> None:
        source = self.out / "labels" / f"train-{kind}" / "labels"
        folder = self.out / "labels" / f"shuffled-{kind}" / "labels"
        words = [str(source), "--out", str(folder), "--seed", str(self.config.seed)]
        inputs = [source / "store.json", source / "ids.npy"]
        self._job(f"shuffle-{kind}", "clustering.shuffle", words, inputs, [folder / "store.json"])

    def _training(self) -> None:
        config = self.config
        for seed in range(config.seed, config.seed + config.seeds):
            first = self._run_folder(seed, "stage1")
            self._train(config.stage1, config.stage1_set, seed, first)
            self._train(
                config.stage2, config.stage2_set, seed, self._run_folder(seed, "stage2"), first
            )
        if config.control:
            first = self._run_folder(config.seed, "stage1")
            out = self.out / "runs" / "shuffled" / "stage2"
            self._train(
                config.stage2, config.stage2_set, config.seed, out, first, labels="shuffled"
            )

    def _run_folder(self, seed: int, stage: str) -> Path:
        return self.out / "runs" / f"seed-{seed}" / stage

    def _train(
        self,
        recipe: str,
        overrides: Sequence[str],
        seed: int,
        out: Path,
        start: Path | None = None,
        labels: str = "train",
    ) -> None:
        config = load(TrainConfig, find_config(recipe), overrides)
        config = own_sources(config, self.out, labels)
        config = replace(
            config,
            run=replace(config.run, out=str(out), seed=seed, init_from=str(start or "")),
        )
        nproc, few = fit_ranks(config, self.config.nproc)
        config, note = fit_training(config, nproc)
        self.notes += [n for n in (few, note) if n and n not in self.notes]
        preflight(config, nproc).check(recipe)
        name = f"train-{out.parent.name}-{out.name}"
        path = write_resolved(config, self.out / "configs" / f"{name}.yaml")
        inputs = [path]
        for source in config.data.sources:
            inputs += [Path(source.shards) / MANIFEST, Path(source.labels) / "ids.npy"]
        if start is not None:
            # "latest" names a step; the metrics tell one training from another.
            inputs += [start / "checkpoints" / "latest", start / "metrics.jsonl"]
        self.stages.run(
            Stage(
                name,
                train_command(path, nproc),
                inputs,
                outputs=[out / "checkpoints" / "latest", out / "metrics.jsonl"],
                resumes=out,
                nproc=nproc,
            )
        )

    def _probe(self) -> None:
        if self.videos is not None:
            self._skip_probe(NO_CLASSES)
            return
        stage = self._probe_stage()
        if self.config.probe:
            self.stages.run(stage)
        elif not self.stages.is_current(stage):  # a table of these very runs is kept
            self._skip_probe(SWITCHED_OFF)

    def _probe_stage(self) -> Stage:
        folder = self.out / "probe"
        last = self.config.seed + self.config.seeds
        runs = [self._run_folder(seed, "stage2") for seed in range(self.config.seed, last)]
        control = self.out / "runs" / "shuffled" / "stage2"
        data = self.out / "data"
        config = replace(
            load(ProbeConfig, None, self.config.probe_set),
            out=str(folder),
            train_shards=str(data / "train" / "video"),
            heldout_shards=str(data / "heldout" / "video"),
            heldout_labels=str(self.out / "labels" / "heldout-video" / "labels"),
            classes=str(self.out / "clips" / "classes.json"),
            runs=[str(run) for run in runs],
            shuffled=str(control) if self.config.control else "",
            cache_dir=str(self.out / "cache"),
        )
        checked("probe_set", config)
        path = write_resolved(config, self.out / "configs" / "probe.yaml")
        # The metrics tell one training from another even where both ended at the same step.
        probed = [*runs, control] if self.config.control else runs
        trained = [run / "metrics.jsonl" for run in probed]
        inputs = [path, *trained, self.out / "clips" / "classes.json"]
        inputs += [Path(config.heldout_shards) / MANIFEST, Path(config.heldout_labels) / "ids.npy"]
        command = module_command("ovtrain.eval.probe", str(path))
        return Stage("probe", command, inputs, [folder / "result.json"])

    def _skip_probe(self, reason: str) -> None:
        write_json(self.out / "probe" / "result.json", {"skipped": reason})
        (self.out / "stages" / "probe.json").unlink(missing_ok=True)
        self.notes.append(f"Probe skipped: {reason}.")

    def _job(
        self,
        name: str,
        module: str,
        words: Sequence[str],
        inputs: Sequence[Path] = (),
        outputs: Sequence[Path] = (),
        state: str = "",
    ) -> None:
        command = module_command(module, *words)
        self.stages.run(Stage(name, command, inputs, outputs, state=state))


def listing(folder: Path, exclude: Path) -> str:
    """Names, sizes and times of a folder's files: tells that they changed without reading them.
    Those below ``exclude`` are left out, unless the whole folder lies there."""
    if not folder.is_dir():
        return ""
    own = exclude.resolve()
    inside = own in [folder.resolve(), *folder.resolve().parents]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if inside or own not in path.resolve().parents]
    return "\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
