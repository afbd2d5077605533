"""DALI image pipeline: the only home of nvidia.dali. JPEG bytes -> decoded, resized, cropped.

One definition with one switch: ``device_id=None`` decodes on the CPU, a number decodes on that GPU
(``mixed``); everything after the decoder is the same graph. Pixel differences to Pillow (another
inverse transform and resampler) stay within a few levels; ``tests/parity`` states the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ovtrain.data.decode.base import Pixels, decode_image
from ovtrain.schema.errors import ConfigError, MediaError

FEED = "jpegs"


def _build(size: int, batch: int, threads: int, device_id: int | None) -> Any:
    try:
        dali: Any = import_module("nvidia.dali")  # its stubs do not fit its functions
    except ImportError as error:
        raise ConfigError(
            "data.image_decoder=dali",
            "nvidia-dali is not installed",
            fix="pip install ovtrain[dali]",
        ) from error
    fn, types = dali.fn, dali.types
    device = "cpu" if device_id is None else "mixed"

    # Nothing is fetched ahead: a run must see the pictures that were fed for it, not older ones.
    @dali.pipeline_def(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=1
    )
    def images() -> Any:
        jpegs = fn.external_source(name=FEED, dtype=types.UINT8)
        pixels = fn.decoders.image(jpegs, device=device, output_type=types.RGB)
        pixels = fn.resize(
            pixels, resize_shorter=size, interp_type=types.INTERP_CUBIC, antialias=True
        )
        return fn.crop(pixels, crop=(size, size), rounding="truncate", dtype=types.UINT8)

    pipeline = images()
    pipeline.build()
    return pipeline


class DaliImages:
    """ImageDecoder on DALI. ``batch`` is the most pictures per call."""

    def __init__(
        self, size: int, batch: int = 64, threads: int = 2, device_id: int | None = None
    ) -> None:
        self.batch = batch
        self._pipeline = _build(size, batch, threads, device_id)

    def __call__(self, data: Sequence[bytes], where: Sequence[str]) -> list[Pixels | MediaError]:
        found: list[Pixels | MediaError] = []
        for first in range(0, len(data), self.batch):
            part = slice(first, first + self.batch)
            found += self._decode(data[part], where[part])
        return found

    def _decode(self, data: Sequence[bytes], where: Sequence[str]) -> list[Pixels | MediaError]:
        """DALI fails a whole batch for one bad JPEG, so each is opened by Pillow's parser first."""
        checked = [_check(d, w) for d, w in zip(data, where, strict=True)]
        good = [d for d, fault in zip(data, checked, strict=True) if fault is None]
        pixels = iter(self._run(good)) if good else iter(())
        return [next(pixels) if fault is None else fault for fault in checked]

    def _run(self, data: Sequence[bytes]) -> list[Pixels]:
        self._pipeline.feed_input(FEED, [np.frombuffer(d, dtype=np.uint8) for d in data])
        (out,) = self._pipeline.run()
        out = out.as_cpu() if hasattr(out, "as_cpu") else out
        return [np.array(out.at(i)) for i in range(len(data))]


def _check(data: bytes, where: str) -> MediaError | None:
    try:
        decode_image(data, where)
    except MediaError as error:
        return error
    return None
