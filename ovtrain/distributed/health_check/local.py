"""What a rank measures alone: its product of matrices, its memory, its way to the disk.

Each measure takes a ``Place`` and gives {name: number}; a result that is wrong raises WrongResult,
whatever else it raises is a fault as well. Results are compared exactly: the numbers are integers
that every format in use holds without rounding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

GEMM_SIDE = {"cuda": 8192, "cpu": 512}
COPY_MIB = {"cuda": 256, "cpu": 32}
HOST_MIB = 64
DISK_MIB = 8
SEED = 17


class WrongResult(Exception):
    """A device computed, kept or carried something wrong."""


@dataclass(frozen=True)
class Place:
    """A rank, what it runs on, the folder that it must be able to write to, and about how long
    each of its measures may take. ``host`` is the name that a launcher knows the node by."""

    rank: int
    size: int
    host: str
    device: torch.device
    folder: Path
    seconds: float

    @property
    def gpu(self) -> int:
        return self.device.index if self.device.type == "cuda" else -1

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Measure = Callable[[Place], dict[str, float]]


def repeated(place: Place, work: Callable[[], object], batch: int = 4) -> float:
    """Seconds that ``work`` takes, from as many calls as fit into the time there is."""
    begin, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begin < place.seconds:
        for _ in range(batch):
            work()
        place.finish()
        count += batch
    return (time.perf_counter() - begin) / count


def memory(place: Place) -> dict[str, float]:
    if place.device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(place.device)
    return {"memory_gib": total / 2**30, "free_gib": free / 2**30}


def gemm(place: Place) -> dict[str, float]:
    """(n, n) @ (n, n), bf16 on a GPU, fp32 on a CPU; the first and the last product are checked."""
    n = GEMM_SIDE[place.device.type]
    generator = torch.Generator(place.device).manual_seed(SEED)
    dtype = torch.bfloat16 if place.device.type == "cuda" else torch.float32

    def draw() -> Tensor:
        """One in eight 1, one in eight -1: of 8,192 products the sums stay within 256, up to which
        bf16 holds every integer (eleven standard deviations)."""
        drawn = torch.randint(8, (n, n), generator=generator, device=place.device)
        return (drawn == 0).to(dtype) - (drawn == 1).to(dtype)

    a, b = draw(), draw()
    out = a @ b
    check_product(a, b, out)
    seconds = repeated(place, lambda: torch.mm(a, b, out=out))
    check_product(a, b, out)
    return {"gemm_tflops": 2 * n**3 / seconds / 1e12}


def check_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Sums of all rows and of all columns against those that follow from the factors, in float64:
    one wrong number changes one of each. Raises WrongResult."""
    rows = a.double() @ b.sum(1, dtype=torch.float64) != out.sum(1, dtype=torch.float64)
    columns = a.sum(0, dtype=torch.float64) @ b.double() != out.sum(0, dtype=torch.float64)
    wrong = int(rows.sum()), int(columns.sum())
    if any(wrong):
        raise WrongResult(
            f"wrong result: {wrong[0]} of {len(rows)} row sums and {wrong[1]} of {len(columns)} "
            "column sums of a product"
        )


def _pattern(mib: int, device: torch.device) -> Tensor:
    """(mib * 2^18,) int32."""
    generator = torch.Generator(device).manual_seed(SEED)
    return torch.randint(
        2**31 - 1, (mib * 2**18,), dtype=torch.int32, device=device, generator=generator
    )


def copy(place: Place) -> dict[str, float]:
    """From memory to the same memory; bytes read and written count."""
    x = _pattern(COPY_MIB[place.device.type], place.device)
    y = torch.empty_like(x)
    seconds = repeated(place, lambda: y.copy_(x))
    _insist_equal(x, y, "a copy in memory")
    return {"copy_gbs": 2 * 4 * x.numel() / seconds / 1e9}


def host_copy(place: Place) -> dict[str, float]:
    """Between the host's pinned memory and the GPU's."""
    if place.device.type != "cuda":
        return {}
    x = _pattern(HOST_MIB, torch.device("cpu")).pin_memory()
    there, back = torch.empty_like(x, device=place.device), torch.empty_like(x).pin_memory()
    to_gpu = repeated(place, lambda: there.copy_(x, non_blocking=True))
    from_gpu = repeated(place, lambda: back.copy_(there, non_blocking=True))
    _insist_equal(x, back, "a copy to the GPU and back")
    size = 4 * x.numel() / 1e9
    return {"to_gpu_gbs": size / to_gpu, "from_gpu_gbs": size / from_gpu}


def _insist_equal(x: Tensor, y: Tensor, what: str) -> None:
    if not torch.equal(x, y):
        raise WrongResult(f"wrong result: {int((x != y).sum())} of {x.numel()} numbers of {what}")


def disk(place: Place) -> dict[str, float]:
    """A small file in the run's folder, to the disk and gone again."""
    place.folder.mkdir(parents=True, exist_ok=True)
    path = place.folder / f".check-{place.rank:05d}.tmp"
    data = os.urandom(DISK_MIB * 2**20)
    begin = time.perf_counter()
    try:
        with open(path, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        seconds = time.perf_counter() - begin
        if path.read_bytes() != data:
            raise WrongResult("wrong result: a file holds other bytes than were written")
    finally:
        path.unlink(missing_ok=True)
    return {"disk_mbs": len(data) / seconds / 1e6}


LOCAL: dict[str, Measure] = {
    "memory": memory,
    "product of matrices": gemm,
    "copy in memory": copy,
    "copy between host and GPU": host_copy,
    "disk": disk,
}
"""By phase."""
