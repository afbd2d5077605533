"""DALI's graphs, one per kind of sample; this package is the only home of nvidia.dali.

Each has one switch: ``device_id=None`` decodes on the CPU, a number decodes on that GPU; everything
after the decoder is the same graph. DALI's CPU build decodes neither H.264 nor HEVC: there, a
``python_function`` takes patches that the loader's workers gathered.

What is fed, per sample (``Feed``), and what comes out: (n, 3*p*p) uint8. Frames are resampled as
``pixels.resample`` does, moved and mirrored as ``pixels.gather`` does, recoloured as
``pixels.recolour`` does but for float32; patches are gathered before anything leaves the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig
from ovtrain.data.pixels import Pixels
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.grid import PatchGrid

Feed = dict[str, npt.NDArray[Any]]
"""order (n,) int32: places among all patches of the frames that are decoded; mirrored () int32;
offset (2, 3) float32: the map from a pixel (x, y) of the moved picture to the picture's own; linear
(3, 3) and shift (3,) float32: the colours. Of media that DALI decodes: media (bytes,) uint8; of
pictures: top_left and bottom_right (2,) float32; of clips: frames (m,) int32. Otherwise: number ()
int32."""
Fed = Callable[[str, Any], Any]
"""(name, DALI's type) -> the graph's input of that name."""
Graph = Callable[[Fed], Any]


def dali() -> Any:
    """The module. Raises ConfigError where it is not installed."""
    try:
        return import_module("nvidia.dali")  # its stubs do not fit its functions
    except ImportError as error:
        raise ConfigError(
            "data.decoder=dali", "nvidia-dali is not installed", fix="pip install ovtrain[dali]"
        ) from error


@dataclass(frozen=True)
class Shape:
    """What a graph is built for: the ``grid`` that is stored, whether pictures are moved and
    colours changed at all."""

    grid: PatchGrid
    moves: bool
    recolours: bool

    @classmethod
    def of(cls, data: DataConfig, grid: PatchGrid) -> Shape:
        a = data.augment
        return cls(grid, a.shift > 0, bool(a.gain or a.contrast or a.saturation))


def picture_graph(shape: Shape, device_id: int | None) -> Graph:
    """media, part -> patches; of images and documents, which differ in what part is fed."""
    fn, types = dali().fn, dali().types
    side = (shape.grid.height * shape.grid.patch, shape.grid.width * shape.grid.patch)

    def graph(fed: Fed) -> Any:
        device = "cpu" if device_id is None else "mixed"
        pixels = fn.decoders.image(
            fed("media", types.UINT8),
            device=device,
            output_type=types.RGB,
            # All that makes decoders differ: no shortcut in colours or in the inverse transform.
            jpeg_fancy_upsampling=True,
            use_fast_idct=False,
        )
        pixels = fn.resize(
            pixels,
            size=side,
            roi_start=fed("top_left", types.FLOAT),
            roi_end=fed("bottom_right", types.FLOAT),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        pixels = fn.reshape(_moved(pixels, shape, fed), shape=[1, *side, 3], layout="FHWC")
        return _changed(_gathered(pixels, shape, fed), shape, fed)

    return graph


def clip_graph(shape: Shape, decoder: str) -> Graph:
    """media, frames -> patches, with DALI's own ``decoder``: mixed, or cpu, which has VP8, VP9 and
    MJPEG alone."""
    fn, types = dali().fn, dali().types

    def graph(fed: Fed) -> Any:
        frames = fn.decoders.video(
            fed("media", types.UINT8),
            device=decoder,
            frames=fed("frames", types.INT32),
        )
        return _changed(_gathered(_moved(frames, shape, fed), shape, fed), shape, fed)

    return graph


def gathered_clip_graph(shape: Shape, patches: Callable[[list[Any]], list[Pixels]]) -> Graph:
    """numbers -> patches (n, 3*p*p), which ``patches`` gathered and moved."""
    fn, types = dali().fn, dali().types
    side = shape.grid.patch

    def graph(fed: Fed) -> Any:
        found = fn.python_function(
            fed("number", types.INT32),
            function=patches,
            batch_processing=True,
            num_outputs=1,
        )
        return _changed(fn.reshape(found, shape=[-1, 3, side, side], layout="FCHW"), shape, fed)

    return graph


def _moved(frames: Any, shape: Shape, fed: Fed) -> Any:
    """Moved by whole pixels, edges repeated."""
    if not shape.moves:
        return frames
    fn, types = dali().fn, dali().types
    matrix = fed("offset", types.FLOAT)
    return fn.warp_affine(frames, matrix=matrix, interp_type=types.INTERP_NN)


def _gathered(frames: Any, shape: Shape, fed: Fed) -> Any:
    """Frames (m, H, W, 3) -> the patches (n, 3, p, p) that are wanted of them."""
    fn, types, grid = dali().fn, dali().types, shape.grid
    side = grid.patch
    tiles = fn.reshape(frames, shape=[-1, grid.height, side, grid.width, side, 3], layout="")
    tiles = fn.transpose(tiles, perm=[0, 1, 3, 5, 2, 4])
    tiles = fn.reshape(tiles, shape=[-1, 3, side, side], layout="FCHW")
    order = fed("order", types.INT32)
    return fn.sequence_rearrange(tiles, new_order=order)


def _changed(patches: Any, shape: Shape, fed: Fed) -> Any:
    """Mirrored, recoloured and flattened (n, 3, p, p)."""
    fn, types = dali().fn, dali().types
    mirrored = fed("mirrored", types.INT32)
    patches = fn.flip(patches, horizontal=mirrored)
    if shape.recolours:
        patches = fn.coord_transform(
            fn.transpose(patches, perm=[0, 2, 3, 1]),
            M=fed("linear", types.FLOAT),
            T=fed("shift", types.FLOAT),
            dtype=types.UINT8,
        )
        patches = fn.transpose(patches, perm=[0, 3, 1, 2])
    return fn.reshape(patches, shape=[-1, 3 * shape.grid.patch**2], layout="")


class Pipeline:
    """A graph that runs on whole batches, of at most ``batch`` samples."""

    def __init__(self, graph: Graph, *, batch: int, threads: int, device_id: int | None) -> None:
        self._names: list[str] = []
        # Nothing is fetched ahead: a run must see what was fed for it, not something older.
        definition = dali().pipeline_def(
            batch_size=batch,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        self._pipeline = definition(graph)(self._fed)
        self._pipeline.build()

    def _fed(self, name: str, dtype: Any) -> Any:
        self._names.append(name)
        return dali().fn.external_source(name=name, dtype=dtype)

    def __call__(self, feeds: Sequence[Feed]) -> list[Pixels]:
        """One result per feed. Raises RuntimeError, after which the pipeline is of no use."""
        for name in self._names:
            self._pipeline.feed_input(name, [feed[name] for feed in feeds])
        (out,) = self._pipeline.run()
        out = out.as_cpu() if hasattr(out, "as_cpu") else out
        return [np.array(out.at(i)) for i in range(len(feeds))]
