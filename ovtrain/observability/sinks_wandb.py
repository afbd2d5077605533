"""Metrics to Weights & Biases: one run under one id, every step once, across kills and resumptions.

The id lies in ``RUN/wandb-id``, so that a run directory that is moved keeps it. wandb buffers what
it is given, and a kill loses that. On a resumption the sink therefore asks which steps arrived:
online the server says the first step it lacks; offline they are read back from the files below
``RUN/wandb``. The rows of metrics.jsonl that did not arrive are sent; steps that arrived are not
sent again, though a resumed run computes some of them once more (to the same values).

wandb never stops a run: where it fails, one warning says so, and later rows are not sent. A
resumption sends them.

The files are logs of protocol buffers: seven bytes of header, then blocks of 32 KiB with records
of checksum, length, kind, bytes (LevelDB's log format). This is the only home of wandb.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any

from ovtrain.observability.history import METRICS, read_rows
from ovtrain.observability.sinks import flat
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import ConfigError

ID_FILE = "wandb-id"
INIT_S, FINISH_S = 60, 60
"""Seconds that an unreachable server may hold up the start and the end of a run."""
HEADER, BLOCK = 7, 32768
RECORD = struct.Struct("<IHB")
WHOLE, LAST = 1, 4
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbPlace:
    """``mode``: "online" or "offline"; what is empty is wandb's own default."""

    mode: str
    project: str = ""
    entity: str = ""
    group: str = ""


class WandbSink:
    """``config``: shown beside the run. Raises ConfigError where wandb is not installed."""

    def __init__(self, folder: Path, config: Mapping[str, Any], place: WandbPlace) -> None:
        self._wandb = _import()
        self._sent: set[int] = set()
        self._first = 0
        self._run = self._begin(folder, config, place)
        if place.mode == "offline":
            self._sent = steps_in(folder / "wandb")
        elif self._run is not None:
            self._first = int(self._run.starting_step)
        for row in read_rows(folder / METRICS):
            self.write(row)

    def _begin(self, folder: Path, config: Mapping[str, Any], place: WandbPlace) -> Any:
        wandb = self._wandb
        try:
            return wandb.init(
                id=run_id(folder),
                name=folder.resolve().name,
                dir=str(folder),
                config=dict(config),
                mode=place.mode,
                project=place.project or None,
                entity=place.entity or None,
                group=place.group or None,
                resume="allow",
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=INIT_S, finish_timeout=FINISH_S
                ),
            )
        except (*_failures(wandb), ValueError) as error:
            self._fail(error)

    def write(self, row: Mapping[str, Any]) -> None:
        step = int(row["step"])
        if self._run is None or step < self._first or step in self._sent:
            return
        try:
            self._run.log(flat(row), step=step)
        except _failures(self._wandb) as error:
            self._fail(error)
        self._sent.add(step)

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except _failures(self._wandb) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        log.warning(
            "wandb: %s: %s; metrics.jsonl has all rows, and a resumption sends them",
            type(error).__name__,
            error,
        )


def _import() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "run.wandb", "wandb is not installed", fix="pip install 'ovtrain[wandb]'"
        ) from error
    return wandb


def _failures(wandb: ModuleType) -> tuple[type[Exception], ...]:
    """What wandb raises where it, its server or its own process fails."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (wandb.errors.Error, HandleAbandonedError, MailboxClosedError, OSError, TimeoutError)


def run_id(folder: Path) -> str:
    """The run's id, made on the first call."""
    path = folder / ID_FILE
    if not path.is_file():
        with atomic_open(path, "w") as handle:
            handle.write(token_hex(6) + "\n")
    return path.read_text().strip()


def steps_in(folder: Path) -> set[int]:
    """Steps whose rows lie in the run files below ``folder``."""
    files = folder.glob("*run-*/run-*.wandb")
    return {int(row["_step"]) for path in files for row in read_history(path) if "_step" in row}


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """Rows that were logged into a run file, until where it was torn."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for raw in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(raw)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(raw: bytes) -> Iterator[bytes]:
    at, whole = HEADER, b""
    while at + RECORD.size <= len(raw):
        left = BLOCK - at % BLOCK
        if left < RECORD.size:  # the rest of a block is padding
            at += left
            continue
        _, size, kind = RECORD.unpack_from(raw, at)
        start, at = at + RECORD.size, at + RECORD.size + size
        if at > len(raw):
            return
        whole += raw[start:at]
        if kind in (WHOLE, LAST):
            yield whole
            whole = b""
