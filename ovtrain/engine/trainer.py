"""The loop, its log lines and its saves. Constructs nothing; ``build`` did."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ovtrain.config.train import TrainConfig
from ovtrain.data.faults import BadSample, TooManyBad
from ovtrain.data.loader import StepBatch
from ovtrain.data.views import VIEWS
from ovtrain.distributed.context import World
from ovtrain.engine import quarantine
from ovtrain.engine.build import Parts
from ovtrain.engine.health import Health, LossRise
from ovtrain.engine.journal import Journal
from ovtrain.engine.preemption import StopRequest
from ovtrain.engine.run_directory import code_state
from ovtrain.engine.state import TrainState
from ovtrain.engine.step import StepResult
from ovtrain.engine.tally import Tally
from ovtrain.engine.verdict import NonFiniteLoss, Verdict
from ovtrain.observability.sinks import STOPPED
from ovtrain.optim.schedule import learning_rate
from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.status import SAVED

log = logging.getLogger(__name__)


class Trainer:
    def __init__(self, config: TrainConfig, parts: Parts, world: World) -> None:
        self.config, self.parts, self.world = config, parts, world
        self.state = TrainState(views=dict.fromkeys(VIEWS, 0))
        self.stop = StopRequest(world)
        self.tally = Tally(config, parts.mesh)
        self.journal = Journal(config, world)
        self.verdict = Verdict(config, parts, world, self.journal.fault)
        self.health = Health(config, world, self.journal.fault)
        self._code = code_state()
        self._unread: list[tuple[StepResult, StepBatch]] = []
        with self.health.slow("loading the checkpoint"):
            self._resume()
            parts.checkpoints.reserve()

    def fit(self) -> bool:
        """Train to the last step; False when a signal ended it early (it saved, and resumes)."""
        steps = self.config.run.total_steps
        state, health = self.state, self.health
        health.begin(state)
        began = state.step
        if began < steps:
            self.journal.start(began, health.ranks.hosts, self._code)
        self.tally.throughput.read()
        try:
            while state.step < steps and not self.stop.requested():
                with health.step(state.step + 1, first=state.step == began):
                    self._step()
                    self._maybe_log(steps)
                self._maybe_save(final=state.step == steps)
                health.after(state.step)
            self._maybe_save(final=True)
            with health.slow("saving"):
                self.parts.checkpoints.wait()
            if state.step < steps:
                self.journal.stop(state.step, SAVED)
        except (NonFiniteLoss, LossRise):
            raise  # on record as what they are
        except OvtrainError as error:
            with suppress(OSError):  # a disk that is full does not hide what it led to
                self.journal.fault(STOPPED, state.step + 1, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()
        return state.step == steps

    def _step(self) -> None:
        state, parts = self.state, self.parts
        batch = self._next_batch()
        result = parts.step.run(batch, state.step)
        self._unread.append((result, batch.without_patches()))
        state.step += 1
        self.tally.add(batch, sum(result.unlabelled))
        self._quarantine(batch.bad, state.step)
        parts.checkpoints.poll()

    def _next_batch(self) -> StepBatch:
        try:
            with self.tally.throughput.waiting():
                return self.parts.next_batch()
        except TooManyBad as error:
            self._quarantine(error.bad, self.state.step + 1)
            raise

    def _quarantine(self, bad: list[BadSample], step: int) -> None:
        if self.parts.mesh.speaks:
            quarantine.record(Path(self.config.run.out), self.world.rank, bad, step)

    def _resume(self) -> None:
        saved = self.parts.checkpoints.resume()
        if saved is not None:
            self.state.restore(saved["train"])
            self.parts.loader.load_state_dict(self.state.consumed, saved.get("shards"))
        if self.world.is_main:
            quarantine.forget_after(Path(self.config.run.out), self.state.step)
        self.journal.open(self.state.step)

    def _read(self) -> dict[str, float]:
        """The last step's metrics, after a look at those of all steps since the last call: one
        transfer from the device. Raises NonFiniteLoss."""
        unread, self._unread = self._unread, []
        names = list(unread[-1][0].metrics) if unread else []
        table = [torch.stack([result.metrics[name] for name in names]) for result, _ in unread]
        rows = torch.stack(table).tolist() if table else []
        first, losses = self.state.step - len(rows) + 1, list[tuple[int, float]]()
        for (step, row), (result, batch) in zip(enumerate(rows, first), unread, strict=True):
            values = dict(zip(names, row, strict=True))
            self.verdict.judge(self.state, step, values, result, batch)
            losses += [] if values["refused"] else [(step, values["loss"])]
        self.health.losses(self.state, losses)
        return dict(zip(names, rows[-1], strict=True)) if rows else {}

    def _maybe_log(self, steps: int) -> None:
        state = self.state
        if state.step % self.config.run.log_every and state.step != steps:
            return
        self.tally.drain(state)
        values = self._read()
        row = {"step": state.step, "time": time.time(), **values, **self._progress(steps)}
        log.info(_line(row, steps))
        self.journal.write(row)

    def _progress(self, steps: int) -> dict[str, Any]:
        state, rates = self.state, self.tally.read()
        stall_ms = self.parts.checkpoints.read_stall_ms()
        return {
            "lr": learning_rate(self.config.optim, state.step - 1, steps),
            **rates,
            **self.health.row(state.step, rates["data_wait_ms"], stall_ms),
            "save_stall_ms": stall_ms,
            "views": dict(state.views),
            "filled": state.filled,
            "bad_samples": sum(state.bad.values()),
            "bad_reasons": dict(state.bad),
            "unlabelled_samples": state.unlabelled,
            "skipped_steps": state.skipped,
        }

    def _maybe_save(self, *, final: bool) -> None:
        checkpoints, state = self.parts.checkpoints, self.state
        step = state.step
        if not checkpoints.due(step, final=final):
            return
        self._read()  # nothing that is not a number is ever saved
        self.tally.drain(state)
        state.consumed = self.parts.loader.state_dict()
        with self.health.slow("saving"):
            checkpoints.save(
                {
                    "step": step,
                    "train": state.to_json(),
                    "classes": {h.head.source: h.head.classes for h in self.parts.heads},
                    "shards": self.parts.loader.contents(),
                    "config": asdict(self.config),
                    "code": self._code,
                }
            )

    def _close(self) -> None:
        self.parts.checkpoints.settle()
        self.health.close()
        self.stop.close()
        self.journal.close()
        self.parts.loader.close()


def _line(row: dict[str, Any], steps: int) -> str:
    return (
        f"step {row['step']}/{steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
        f"{row['samples_per_s']:.0f} samples/s  {row['tokens_per_s']:.0f} tokens/s  "
        f"{row['flops_per_s'] / 1e12:.3f} TFLOP/s  data wait {row['data_wait']:.0%}"
    )
