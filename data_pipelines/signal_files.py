"""What a codec says of one video, and what would be kept of it, as files that numpy reads.

    python -m data_pipelines.signal_files dump VIDEO --out F.npz [--origin O] [--start A] [--stop B]
    python -m data_pipelines.signal_files select VIDEO --budget 2048 --out F.npz [... key=value ...]

``dump`` writes T frames of H x W luma samples, h4 = ceil(H / 4), w4 = ceil(W / 4):

    frame_type () "I" "P" "B" (T,)         pts float64 (T,), seconds
    poc int64 (T,), NO_POC = unknown       packet_bytes int64 (T,)
    parse_ok bool (T,)                     several_references int8 (T,), -1 = not known
    motion int16 (T, h4, w4, 2, 2)         ref_delta int16 (T, h4, w4, 2)
    residual int16 (T, H, W)               ctb_bits uint32 (T, rows, columns), (T, 0, 0) = unknown
    signal_origin (), frame_ids int64 (T,), numbers of the frames in the video

with the meanings of ``CodecSignals``. ``select`` writes T of the video's frames on h x w patches:

    energy uint16 (T, h, w), 65,535 = 1.0  positions int16 (N, 3), (t, h, w), sorted
    frame_ids int64 (T,)                   filled (), kept patches that carry no energy
    signal_origin (), damaged (), frames whose bitstream is damaged

Raises MediaError, CodecError, ConfigError. A file appears when it is complete.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_pipelines.progress import Progress
from ovtrain.codec import CodecSignals, Want, open_signals
from ovtrain.codec.bitstream import ORIGINS, Origin
from ovtrain.codec.hevc import ExactSignals
from ovtrain.codec.selection import MODES
from ovtrain.codec.video_selection import select_from_video
from ovtrain.config.load import checked, load
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import CodecError, exit_status

NO_POC = int(np.iinfo(np.int64).min)
BLOCK = 1 << 20

Array = npt.NDArray[Any]


@dataclass
class _Rows:
    """Rows of one array so far, in a file without a name."""

    file: IO[bytes]
    packed: gzip.GzipFile
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int = 0


class NpzWriter:
    """An .npz whose arrays grow by one row at a time. Rows wait in compressed files without a name,
    so memory does not grow with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, _Rows] = {}

    def append(self, name: str, row: Array) -> None:
        """Add a row. Raises CodecError where those before it have another shape or type."""
        if name not in self._rows:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by ``write``
            packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1)
            self._rows[name] = _Rows(file, packed, row.shape, row.dtype)
        rows = self._rows[name]
        if (row.shape, row.dtype) != (rows.shape, rows.dtype):
            raise CodecError(
                f"{name} of frame {rows.count}",
                f"{row.dtype} {row.shape} behind {rows.dtype} {rows.shape}",
                allowed="one shape per file",
                fix="dump the parts of the video one by one (--start, --stop)",
            )
        rows.packed.write(np.ascontiguousarray(row).tobytes())
        rows.count += 1

    def write(self, path: Path, **whole: Array) -> None:
        """All rows and the ``whole`` arrays to ``path``."""
        with (
            atomic_open(path) as handle,
            zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in whole.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, rows in self._rows.items():
                rows.packed.close()
                rows.file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_header(member, (rows.count, *rows.shape), rows.dtype)
                    shutil.copyfileobj(gzip.GzipFile(fileobj=rows.file), member, BLOCK)
                rows.file.close()


def _write_header(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_2_0(member, described)


def dump(
    video: Path, out: Path, *, origin: Origin | None = None, start: int = 0, stop: int | None = None
) -> str:
    """Write the signals of ``video``; a line that says what there was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = NpzWriter(out.parent)
    several = damaged = 0
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("frame_type", "pts", "poc", "packet_bytes", "parse_ok", "several_references")
    }
    with open_signals(video, origin=origin, want=Want(bits=True), start=start, stop=stop) as source:
        for signals in _shown(source, "signals"):
            for name, value in _numbers(signals).items():
                columns[name].append(value)
            bits = signals.ctb_bits
            writer.append("motion", signals.motion)
            writer.append("ref_delta", signals.reference_delta)
            writer.append("residual", signals.residual)
            writer.append("ctb_bits", np.zeros((0, 0), np.uint32) if bits is None else bits)
            several += bool(signals.several_references)
            damaged += not signals.parse_ok
        taken = source.origin
        lost = source.lost_units if isinstance(source, ExactSignals) else 0
    count = len(columns["pts"])
    types = {"poc": np.int64, "packet_bytes": np.int64, "several_references": np.int8}
    writer.write(
        out,
        **{name: np.array(values, types.get(name)) for name, values in columns.items()},
        frame_ids=np.arange(start, start + count),
        signal_origin=np.array(taken),
    )
    notes = [f"{damaged} damaged"] * bool(damaged)
    notes += [f"{lost} damaged units that belong to no frame"] * bool(lost)
    if several:
        notes.append(f"{several} whose blocks choose among several references, not told apart")
    return f"{out}: {count} frames, {taken}" + "".join(f"; {note}" for note in notes)


def _numbers(signals: CodecSignals) -> dict[str, Any]:
    several = signals.several_references
    return {
        "frame_type": signals.type,
        "pts": signals.pts,
        "poc": NO_POC if signals.poc is None else signals.poc,
        "packet_bytes": signals.packet_bytes,
        "parse_ok": signals.parse_ok,
        "several_references": -1 if several is None else int(several),
    }


def select_patches(video: Path, out: Path, budget: int, **options: Any) -> str:
    """Choose ``budget`` patches; ``options`` are those of ``select_from_video``."""

    def watch(signals: Iterable[CodecSignals]) -> Iterable[CodecSignals]:
        return _shown(signals, "energy")

    found = select_from_video(video, budget, watch=watch, **options)
    NpzWriter(out.parent).write(
        out,
        energy=found.energy,
        positions=found.positions.astype(np.int16),
        frame_ids=found.frame_ids,
        filled=np.array(found.filled),
        damaged=np.array(found.damaged),
        signal_origin=np.array(found.origin),
    )
    notes = [f"{found.damaged} of them damaged"] * bool(found.damaged)
    notes += [f"{found.filled} kept patches carry no energy"] * bool(found.filled)
    return (
        f"{out}: {len(found.positions)} of {found.energy.size} patches of "
        f"{len(found.frame_ids)} frames out of {found.read}, {found.origin}"
        + "".join(f"; {note}" for note in notes)
    )


def _shown(source: Iterable[CodecSignals], name: str) -> Iterator[CodecSignals]:
    with Progress(name, None, "frames") as progress:
        for signals in source:
            yield signals
            progress.advance()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("dump", "select"):
        command = commands.add_parser(name)
        command.add_argument("video", type=Path)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--origin", choices=ORIGINS)
        command.add_argument("--start", type=int, default=0)
        command.add_argument("--stop", type=int)
        if name == "select":
            command.add_argument("--budget", type=int, required=True)
            command.add_argument("--frames", type=int, default=64)
            command.add_argument("--size", type=int, default=224)
            command.add_argument("--patch", type=int, default=14)
            command.add_argument("--mode", choices=MODES, default="global")
            command.add_argument("overrides", nargs="*")
    named = vars(parser.parse_args())
    if named.pop("command") == "dump":
        print(dump(named.pop("video"), named.pop("out"), **named))
        return 0
    config = load(EnergyConfig, None, named.pop("overrides"))
    checked("energy", config)
    print(select_patches(named.pop("video"), named.pop("out"), energy=config, **named))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
