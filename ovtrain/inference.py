"""Embeddings of pictures, frames and videos with a trained encoder.

    from ovtrain.inference import Embedder

    embedder = Embedder.load("exported")                    # a public-format folder
    picture = embedder.image("photo.jpg")                   # .tokens (N, D), .pooled (D,)
    frames = embedder.frames(list_of_frames)                # (H, W, 3) uint8 RGB each
    clip = embedder.video("clip.mp4", budget=2048)          # the patches that carry news

``Embedder.many`` takes views of any mixture (``image_view``, ``frames_view``, ``video_view``)
through the encoder in one packed call. N tokens, D width, p patch side, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from PIL.ImageOps import exif_transpose
from torch import Tensor

from ovtrain.codec.bitstream import Origin
from ovtrain.codec.decoded import Media, media_name
from ovtrain.codec.selection import Mode
from ovtrain.codec.video_selection import select_from_video
from ovtrain.config.prepare import EnergyConfig
from ovtrain.data.decode.base import Pixels, decode_image, fit
from ovtrain.data.decode.pyav import decode_frames, quarter_turns
from ovtrain.data.views import gather_patches
from ovtrain.export.load import load_encoder
from ovtrain.models.encoder import Encoder
from ovtrain.schema.errors import InputError, MediaError
from ovtrain.schema.grid import PatchGrid

Picture = str | Path | Image | Pixels
"""A file, a PIL image, or (H, W, 3) uint8 RGB."""
Side = int | Literal["own"]
IMAGE_SIDE, FRAME_SIDE = 448, 224
"""Picture sides of the public release: a still image's, and a frame's of a video."""
VIRTUAL_FRAMES = 64


@dataclass(frozen=True)
class View:
    """patches (N, 3*p*p) uint8, channel-major; positions (N, 3) int64 (t, h, w); of a video, the
    numbers of its frames at each t and the origin of its codec signals."""

    patches: Pixels
    positions: npt.NDArray[np.int64]
    frame_ids: npt.NDArray[np.int64] | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Embedding:
    """tokens (N, D) in the order of ``view.positions``, pooled (D,); float32, on the CPU."""

    tokens: Tensor
    pooled: Tensor
    view: View


class Embedder:
    """A copy of an encoder in evaluation, of type ``dtype`` on ``device``. Pictures get the side
    that the encoder is meant for, frames at most 224, where no ``size`` says otherwise."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.encoder = deepcopy(encoder).eval().to(self.device, dtype)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Embedder:
        """The encoder of a public-format folder: an ovtrain export or the public release's. Raises
        CheckpointError."""
        return cls(load_encoder(folder), device=device, dtype=dtype)

    @property
    def patch(self) -> int:
        return self.encoder.config.patch

    @property
    def virtual(self) -> int:
        """Frames of the encoder's virtual grid."""
        return self.encoder.config.rope_frames or VIRTUAL_FRAMES

    @property
    def frame_size(self) -> int:
        """Default side of frames."""
        return min(self.encoder.image_size, FRAME_SIDE)

    def image(self, picture: Picture, *, size: Side | None = None) -> Embedding:
        """A still picture, see ``image_view``."""
        size = self.encoder.image_size if size is None else size
        return self.many([image_view(picture, size=size, patch=self.patch)])[0]

    def frames(
        self,
        pictures: Iterable[Picture],
        *,
        t: Sequence[int] | None = None,
        size: Side | None = None,
    ) -> Embedding:
        """Whole frames of one clip, see ``frames_view``."""
        size = self.frame_size if size is None else size
        view = frames_view(pictures, t=t, size=size, patch=self.patch, virtual=self.virtual)
        return self.many([view])[0]

    def video(
        self,
        video: Media,
        *,
        budget: int = 2048,
        size: int | None = None,
        frames: int | None = None,
        mode: Mode = "global",
        energy: EnergyConfig | None = None,
        origin: Origin | None = None,
    ) -> Embedding:
        """The patches of a video that carry news, see ``video_view``."""
        if frames is not None and frames > self.virtual:
            raise InputError("frames", str(frames), allowed=f"1 to {self.virtual}")
        view = video_view(
            video,
            budget=budget,
            size=self.frame_size if size is None else size,
            patch=self.patch,
            frames=self.virtual if frames is None else frames,
            mode=mode,
            energy=energy,
            origin=origin,
        )
        return self.many([view])[0]

    @torch.inference_mode()
    def many(self, views: Iterable[View]) -> list[Embedding]:
        """Any mixture of views in one packed call. Raises InputError."""
        views = list(views)
        if not views:
            return []
        for number, view in enumerate(views):
            if view.patches.shape[1] != 3 * self.patch**2:
                found = f"patches of {view.patches.shape[1]} numbers"
                allowed = f"{3 * self.patch**2}, for a patch side of {self.patch}"
                raise InputError(f"view {number}", found, allowed=allowed)
        lengths = [len(view.patches) for view in views]
        patches = torch.from_numpy(np.concatenate([view.patches for view in views]))
        positions = torch.from_numpy(np.concatenate([view.positions for view in views]))
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        self.encoder.check(patches, positions, bounds, max(lengths))  # values, before they move
        given = (x.to(self.device) for x in (patches, positions, bounds))
        tokens, pooled = self.encoder(*given, max(lengths))
        parts = tokens.float().cpu().split(lengths)
        return [
            Embedding(part, row, view)
            for part, row, view in zip(parts, pooled.float().cpu(), views, strict=True)
        ]


def image_view(picture: Picture, *, size: Side = IMAGE_SIDE, patch: int = 14) -> View:
    """All patches of a picture at t = 0, upright as its EXIF data say. ``size``: its short side is
    resized to it and its centre cropped; "own" keeps its size. Raises MediaError, InputError, and
    ConfigError where a side is no multiple of ``patch``."""
    return _whole([picture], np.zeros(1, np.int64), size, patch)


def frames_view(
    pictures: Iterable[Picture],
    *,
    t: Sequence[int] | None = None,
    size: Side = FRAME_SIDE,
    patch: int = 14,
    virtual: int = VIRTUAL_FRAMES,
) -> View:
    """All patches of T frames. ``t``: their places on the virtual grid; without, they are spread
    evenly over its ``virtual`` frames, round(i / (T - 1) * (virtual - 1)). Raises InputError, and
    as ``image_view``."""
    if isinstance(pictures, str | Path | Image):
        found = f"one {type(pictures).__name__}"
        raise InputError("frames", found, allowed="a list of pictures", fix="put it into a list")
    pictures = list(pictures)
    count = len(pictures)
    if count < 1 or (count > virtual and t is None):
        found = f"{count} frames"
        fix = "choose frames, or give their places t" if count else ""
        raise InputError("frames", found, allowed=f"1 to {virtual}", fix=fix)
    places = np.rint(np.arange(count) / max(count - 1, 1) * (virtual - 1))
    if t is not None:
        places = np.asarray(t)
        if places.shape != (count,) or not np.issubdtype(places.dtype, np.integer):
            found = f"{places.dtype} {places.shape} for {count} frames"
            raise InputError("t", found, allowed="one whole number per frame")
    places = places.astype(np.int64)
    return _whole(pictures, places, size, patch)


def video_view(
    video: Media,
    *,
    budget: int = 2048,
    size: int = FRAME_SIDE,
    patch: int = 14,
    frames: int = VIRTUAL_FRAMES,
    mode: Mode = "global",
    energy: EnergyConfig | None = None,
    origin: Origin | None = None,
) -> View:
    """``budget`` patches of up to ``frames`` frames, chosen by the video's codec signals
    (``ovtrain.codec.video_selection``); all patches where there are no more. The picture is upright
    as the video's metadata say. ``video``: a path, bytes or a binary file. Raises MediaError,
    CodecError, ConfigError."""
    turns = quarter_turns(video)
    chosen = select_from_video(
        video,
        budget,
        frames=frames,
        size=size,
        patch=patch,
        mode=mode,
        energy=energy,
        origin=origin,
        clamp=True,
        turns=turns,
    )
    places = {int(number): t for t, number in enumerate(chosen.frame_ids)}
    where = media_name(video)
    found = {
        number: np.rot90(fit(picture, size), turns)
        for number, picture in decode_frames(video, where, places.keys())
    }
    if len(found) < len(places):
        shown = f"{len(found)} of {len(places)} frames decode"
        raise MediaError(where, shown, fix="check the file with ffprobe, or leave it out")
    pictures = np.stack([found[number] for number in places])
    patches = gather_patches(pictures, chosen.positions, patch)
    return View(patches, chosen.positions, chosen.frame_ids, chosen.origin)


def _whole(
    pictures: Sequence[Picture], places: npt.NDArray[np.int64], size: Side, patch: int
) -> View:
    """All patches of pictures that stand at t = ``places``."""
    if size != "own" and (not isinstance(size, int) or size < 1):
        raise InputError("size", repr(size), allowed='a picture side in pixels, or "own"')
    read = [_pixels(picture) for picture in pictures]
    if size != "own":
        read = [fit(picture, size) for picture in read]
    height, width = read[0].shape[:2]
    for number, picture in enumerate(read):
        if picture.shape[:2] != (height, width):
            found = f"{picture.shape[1]}x{picture.shape[0]} behind {width}x{height}"
            raise InputError(f"frame {number}", found, allowed="one size", fix="give a size")
    grid = PatchGrid.from_pixels(len(read), height, width, patch)
    where = grid.positions(np.arange(grid.size))
    positions = where.copy()
    positions[:, 0] = places[where[:, 0]]
    return View(gather_patches(np.stack(read), where, patch), positions)


def _pixels(picture: Picture) -> Pixels:
    """(H, W, 3) uint8 RGB. Raises MediaError, InputError."""
    if isinstance(picture, str | Path):
        try:
            data = Path(picture).read_bytes()
        except OSError as error:
            raise MediaError(str(picture), f"cannot be read ({error.strerror})") from error
        return decode_image(data, str(picture), upright=True)
    if isinstance(picture, Image):
        return np.asarray(exif_transpose(picture).convert("RGB"))
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        found = f"{array.dtype} {array.shape}"
        raise InputError("picture", found, allowed="uint8 (H, W, 3), RGB")
    return array
