"""What a rank counts from step to step, and what a log line says of it: host integers only."""

from __future__ import annotations

from typing import Any

import torch

from ovtrain.config.train import TrainConfig
from ovtrain.costs.device import peak_tflops
from ovtrain.data.batch import PackedBatch
from ovtrain.data.faults import CATEGORIES
from ovtrain.data.loader import Loading, StepBatch
from ovtrain.data.views import VIEWS
from ovtrain.distributed.collectives import all_reduce
from ovtrain.distributed.context import World
from ovtrain.distributed.mesh import Mesh
from ovtrain.engine.state import TrainState
from ovtrain.engine.work import work_of
from ovtrain.observability.throughput import Throughput

COUNTED = (*VIEWS, *CATEGORIES, "tokens", "flops", "filled", "unlabelled")


class Tally:
    """Counts of this rank since the last ``drain``."""

    def __init__(self, config: TrainConfig, mesh: Mesh) -> None:
        world = mesh.world
        self.model, self.data = config.model, mesh.data
        self.throughput = Throughput()
        self._peak = 1e12 * (config.run.peak_tflops or known_peak(world)) * world.size
        self._counts = torch.zeros(len(COUNTED), dtype=torch.float64)
        self._loading = Loading()

    def add(self, batch: StepBatch, unlabelled: int) -> None:
        """One step of this rank."""
        for micro in batch.micro:
            self._add_micro(micro)
        for one in batch.bad:
            self._counts[COUNTED.index(one.category)] += 1
        self._counts[-1] += unlabelled
        self._loading.add(batch)

    def _add_micro(self, micro: PackedBatch) -> None:
        for view in micro.view[micro.key != 0].tolist():  # a placeholder shows nothing
            self._counts[view] += 1
        work = work_of(micro, self.model)
        self._counts[-4:-1] += torch.tensor([work.tokens, work.flops, int(micro.filled.sum())])

    def drain(self, state: TrainState) -> None:
        """Collective: bring the counts of all ranks into the state and the throughput."""
        total = all_reduce(self._counts, self.data.group).tolist()
        self._counts.zero_()
        counted = dict(zip(COUNTED, total, strict=True))
        for view in VIEWS:
            state.views[view] += round(counted[view])
        for category in CATEGORIES:
            if counted[category]:
                state.bad[category] = state.bad.get(category, 0) + round(counted[category])
        state.filled += round(counted["filled"])
        state.unlabelled += round(counted["unlabelled"])
        samples = sum(counted[view] for view in VIEWS)
        self.throughput.add(round(samples), round(counted["tokens"]), counted["flops"])

    def read(self) -> dict[str, Any]:
        """Rates and loading since the last call."""
        rates = self.throughput.read()
        if self._peak:
            rates["mfu"] = rates["flops_per_s"] / self._peak
        return {**rates, **self._loading.read()}


def known_peak(world: World) -> float:
    """TFLOP/s of this rank's device, 0 where they are not known."""
    if world.device.type != "cuda":
        return 0.0
    return peak_tflops(torch.cuda.get_device_name(world.device)) or 0.0
