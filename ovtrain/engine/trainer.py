"""The loop, its log lines and its saves. Constructs nothing; ``build`` did."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from ovtrain.config.train import TrainConfig
from ovtrain.costs.device import peak_tflops
from ovtrain.costs.encoder import training_flops
from ovtrain.data.faults import CATEGORIES, BadSample, TooManyBad
from ovtrain.data.loader import Loading, StepBatch
from ovtrain.data.views import VIEWS
from ovtrain.distributed.collectives import all_reduce, gather_objects
from ovtrain.distributed.context import World
from ovtrain.engine import quarantine
from ovtrain.engine.build import Parts
from ovtrain.engine.preemption import StopRequest
from ovtrain.engine.state import TrainState
from ovtrain.engine.step import StepResult
from ovtrain.models.packing import attended_pairs
from ovtrain.observability.sinks import JsonlSink, Sink, WandbSink
from ovtrain.observability.throughput import Throughput
from ovtrain.ops.varlen_attention import Sequences
from ovtrain.optim.schedule import learning_rate
from ovtrain.schema.errors import OvtrainError

log = logging.getLogger(__name__)
COUNTED = (*VIEWS, *CATEGORIES, "tokens", "flops", "filled", "unlabelled")
"""What a rank counts from step to step."""


class NonFiniteLoss(OvtrainError):
    """Training produced a NaN or an infinity."""


class UnsoundEmbedding(NonFiniteLoss):
    """The encoder gave an embedding that is zero, or with a NaN or an infinity."""


class Trainer:
    def __init__(self, config: TrainConfig, parts: Parts, world: World) -> None:
        self.config, self.parts, self.world = config, parts, world
        self.state = TrainState(views=dict.fromkeys(VIEWS, 0))
        self.stop = StopRequest(world)
        self.throughput = Throughput()
        self._peak = 1e12 * (config.run.peak_tflops or known_peak(world))
        self.sinks: list[Sink] = []
        self._window = torch.zeros(len(COUNTED), dtype=torch.float64)
        self._loading = Loading()
        self._unread: list[tuple[StepResult, StepBatch]] = []
        self._resume()

    def fit(self) -> bool:
        """Train to the last step; False when a signal ended it early (it saved, and resumes)."""
        steps = self.config.run.total_steps
        state, parts = self.state, self.parts
        self.throughput.read()
        try:
            while state.step < steps and not self.stop.requested():
                batch = self._next_batch()
                result = parts.step.run(batch, state.step)
                self._unread.append((result, batch.without_patches()))
                state.step += 1
                self._count(batch, result)
                self._maybe_log(steps)
                self._maybe_save(final=state.step == steps)
            self._maybe_save(final=True)
        finally:
            self._close()
        return state.step == steps

    def _next_batch(self) -> StepBatch:
        try:
            with self.throughput.waiting():
                return next(self.parts.loader)
        except TooManyBad as error:
            self._quarantine(error.bad, self.state.step + 1)
            raise

    def _quarantine(self, bad: list[BadSample], step: int) -> None:
        quarantine.record(Path(self.config.run.out), self.world.rank, bad, step)

    def _resume(self) -> None:
        out, run = Path(self.config.run.out), self.config.run
        saved = self.parts.checkpoints.resume()
        if saved is not None:
            self.state.restore(saved["train"])
            self.parts.loader.load_state_dict(self.state.consumed, saved.get("shards"))
        if self.world.is_main:
            metrics = JsonlSink(out / "metrics.jsonl")
            metrics.truncate_after(self.state.step)
            quarantine.forget_after(out, self.state.step)
            self.sinks.append(metrics)
            if run.wandb:
                self.sinks.append(WandbSink(out, {"run": run.out}))

    def _count(self, batch: StepBatch, result: StepResult) -> None:
        """Add this rank's part of a step to the window (host integers only)."""
        model, window = self.config.model, self._window
        for micro in batch.micro:
            for view in micro.view[micro.key != 0].tolist():  # a placeholder shows nothing
                window[view] += 1
            lengths = micro.cu_seqlens.diff().tolist()
            pairs = attended_pairs(
                Sequences(micro.cu_seqlens, micro.max_seqlen),
                micro.group_id,
                micro.positions[:, 0],
                model.window_frames,
                len(model.window_layers) / model.size.depth,
            ).tolist()
            flops = sum(
                training_flops(model.size, n, model.patch, p)
                for n, p in zip(lengths, pairs, strict=True)
            )
            window[-4:-1] += torch.tensor([sum(lengths), flops, int(micro.filled.sum())])
        self._loading.add(batch)
        for one in batch.bad:
            window[COUNTED.index(one.category)] += 1
        window[-1] += sum(result.unlabelled)
        self._quarantine(batch.bad, self.state.step)

    def _drain(self) -> None:
        """Bring the window's counts of all ranks into the state and the throughput."""
        total = all_reduce(self._window.to(self.world.device), self.world.group).tolist()
        self._window.zero_()
        state, counted = self.state, dict(zip(COUNTED, total, strict=True))
        for view in VIEWS:
            state.views[view] += round(counted[view])
        for category in CATEGORIES:
            if counted[category]:
                state.bad[category] = state.bad.get(category, 0) + round(counted[category])
        state.filled += round(counted["filled"])
        state.unlabelled += round(counted["unlabelled"])
        samples = sum(counted[view] for view in VIEWS)
        self.throughput.add(round(samples), round(counted["tokens"]), counted["flops"])

    def _read(self) -> dict[str, float]:
        """The last step's metrics, after a look at those of all steps since the last call: one
        transfer from the device. Raises NonFiniteLoss."""
        unread, self._unread = self._unread, []
        names = list(unread[-1][0].metrics) if unread else []
        table = [torch.stack([result.metrics[name] for name in names]) for result, _ in unread]
        rows = torch.stack(table).tolist() if table else []
        first = self.state.step - len(rows) + 1
        for (step, values), (result, batch) in zip(enumerate(rows, first), unread, strict=True):
            if values[names.index("unsound")]:
                raise self._unsound(step, result, batch)
            if not all(map(math.isfinite, values)):
                shown = ", ".join(f"{n} {v:g}" for n, v in zip(names, values, strict=True))
                raise NonFiniteLoss(
                    self.config.run.out,
                    f"step {step}: {shown}",
                    fix="the newest checkpoint is from before. Look at the data of that step, or "
                    "start another run.out with a lower optim.lr and run.init_from=this run",
                )
        return dict(zip(names, rows[-1], strict=True)) if rows else {}

    def _unsound(self, step: int, result: StepResult, batch: StepBatch) -> UnsoundEmbedding:
        """Collective: the error that names the samples of all ranks."""
        loader = self.parts.loader
        found = [
            f"{loader.sources[int(micro.source[i])].config.name}: "
            f"{loader.name_of(int(micro.source[i]), int(micro.key[i]))}"
            for micro, sound in zip(batch.micro, result.sound, strict=True)
            for i in (~sound.cpu()).nonzero().flatten().tolist()
        ]
        named = [name for part in gather_objects(found, self.world.group) for name in part]
        return UnsoundEmbedding(
            self.config.run.out,
            f"step {step}: {len(named)} embeddings that are zero or not finite, of samples "
            + ", ".join(named[:10]),
            fix="the newest checkpoint is from before. Look at these samples; if they are sound, "
            "start another run.out with a lower optim.lr and run.init_from=this run",
        )

    def _maybe_log(self, steps: int) -> None:
        state = self.state
        if state.step % self.config.run.log_every and state.step != steps:
            return
        self._drain()
        values = self._read()
        row = {"step": state.step, "time": time.time(), **values, **self._progress(steps)}
        log.info(_line(row, steps))
        for sink in self.sinks:
            sink.write(row)

    def _progress(self, steps: int) -> dict[str, Any]:
        rates = self.throughput.read()
        state = self.state
        if self._peak:
            rates["mfu"] = rates["flops_per_s"] / (self._peak * self.world.size)
        return {
            "lr": learning_rate(self.config.optim, state.step - 1, steps),
            **rates,
            **self._loading.read(),
            "views": dict(state.views),
            "filled": state.filled,
            "bad_samples": sum(state.bad.values()),
            "bad_reasons": dict(state.bad),
            "unlabelled_samples": state.unlabelled,
        }

    def _maybe_save(self, *, final: bool) -> None:
        checkpoints, step = self.parts.checkpoints, self.state.step
        if not checkpoints.due(step, final=final):
            return
        self._read()  # nothing that is not a number is ever saved
        self._drain()
        self.state.consumed = self.parts.loader.state_dict()
        checkpoints.save(
            {
                "step": step,
                "train": self.state.to_json(),
                "classes": {h.head.source: h.head.classes for h in self.parts.heads},
                "shards": self.parts.loader.contents(),
            }
        )

    def _close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.parts.loader.close()


def known_peak(world: World) -> float:
    """TFLOP/s of this rank's device, 0 where they are not known."""
    if world.device.type != "cuda":
        return 0.0
    return peak_tflops(torch.cuda.get_device_name(world.device)) or 0.0


def _line(row: dict[str, Any], steps: int) -> str:
    return (
        f"step {row['step']}/{steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
        f"{row['samples_per_s']:.0f} samples/s  {row['tokens_per_s']:.0f} tokens/s  "
        f"{row['flops_per_s'] / 1e12:.3f} TFLOP/s  data wait {row['data_wait']:.0%}"
    )
