"""A clip cut out of a stream at a key frame, its packets as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import av
from av.packet import Packet
from av.video.stream import VideoStream

from data_pipelines.inventory.probe import video_stream


@dataclass(frozen=True)
class Cut:
    """payload: an MP4; start: its first frame in the stream."""

    payload: bytes
    start: int


def remux(source: str | BinaryIO, place: int, frames: int) -> Cut | None:
    """``frames`` frames from the last key frame at or before frame ``place`` on, of a stream whose
    packets are in presentation order; None where it ends before."""
    with av.open(source, "r") as container:
        stream = video_stream(container, "clip")
        found, start = _packets(container.demux(stream), place, frames)
        if len(found) < frames:
            return None
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            copy = out.add_stream_from_template(stream)
            first = found[0].dts or 0
            for packet in found:
                packet.stream = copy
                packet.dts = (packet.dts or 0) - first
                packet.pts = packet.dts
                out.mux(packet)
    return Cut(buffer.getvalue(), start)


Packets: TypeAlias = "list[Packet[VideoStream]]"


def _packets(
    packets: Iterator[Packet[VideoStream]], place: int, frames: int
) -> tuple[Packets, int]:
    """Those of the clip, and the number of its first."""
    kept: Packets = []
    start = 0
    for number, packet in enumerate(p for p in packets if p.size):
        if packet.is_keyframe and number <= place:
            kept, start = [], number
        if len(kept) < frames:
            kept.append(packet)
        if number >= place and len(kept) == frames:
            break
    return kept, start
