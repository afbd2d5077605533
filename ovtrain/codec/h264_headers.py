"""How many references the blocks of an H.264 picture may choose from (ITU-T H.264, 7.3).

FFmpeg exports motion vectors without reference indices. Whether that hides anything is said by the
slice headers: num_ref_idx_active_minus1, which needs the parameter sets before it and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

IDR, SPS, PPS = 5, 7, 8
SLICES = (1, 2, IDR)  # 2: data partition A, which holds the slice header
WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
"""profile_idc of 7.3.2.1.1 whose parameter sets name a chroma format."""
P_SLICE, B_SLICE, SP_SLICE = 0, 1, 3
MOST_REFERENCES = 32


class _Bits:
    """u(n), ue(v), se(v) of 7.2 and 9.1. Raises ValueError behind the end."""

    def __init__(self, payload: bytes) -> None:
        self._value, self._left = int.from_bytes(payload, "big"), 8 * len(payload)

    def u(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("a header ends early")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u():
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


@dataclass(frozen=True)
class _Sequence:
    frame_num_bits: int
    poc_bits: int  # 0: the slice header holds no pic_order_cnt_lsb
    has_poc_deltas: bool
    frames_only: bool
    separate_planes: bool


@dataclass(frozen=True)
class _Picture:
    sequence: int
    bottom_field_order: bool
    active: tuple[int, int]
    redundant_counts: bool


class H264Headers:
    """Parameter sets so far; feed it packets in decoding order.

    ``configuration``: the container's avcC record, or annex B parameter sets, or nothing.
    """

    def __init__(self, configuration: bytes) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, _Picture] = {}
        self._length_bytes = 0
        if configuration[:1] == b"\x01" and len(configuration) > 6:
            self._length_bytes = (configuration[4] & 3) + 1
            for nal in _configured(configuration):
                self._read(nal)
        else:
            self.active_references(configuration)

    def active_references(self, packet: bytes) -> int | None:
        """The most references a list of a slice of this packet has; 0 without predicted slices,
        None where a header cannot be read."""
        found = [self._read(nal) for nal in self._nals(packet)]
        return None if None in found else max((n for n in found if n is not None), default=0)

    def _nals(self, packet: bytes) -> Iterator[bytes]:
        if self._length_bytes == 0:
            yield from (nal for nal in packet.split(b"\x00\x00\x01")[1:] if nal)
            return
        at = 0
        while at + self._length_bytes < len(packet):
            end = at + self._length_bytes
            size = int.from_bytes(packet[at:end], "big")
            yield packet[end : end + size]
            at = end + size

    def _read(self, nal: bytes) -> int | None:
        """References of a slice; 0 of other units; None where the unit is damaged."""
        if not nal or nal[0] & 31 not in (*SLICES, SPS, PPS):
            return 0
        kind = nal[0] & 31
        # A slice header ends well before this.
        bits = _Bits(nal[1 : 65 if kind in SLICES else None].replace(b"\x00\x00\x03", b"\x00\x00"))
        try:
            if kind == SPS:
                self._read_sps(bits)
            elif kind == PPS:
                self._read_pps(bits)
            else:
                return self._read_slice(bits, kind == IDR)
        except (ValueError, KeyError):
            return None
        return 0

    def _read_sps(self, bits: _Bits) -> None:
        profile = bits.u(8)
        bits.u(16)
        number, separate = bits.ue(), False
        if profile in WITH_CHROMA_FORMAT:
            chroma = bits.ue()
            separate = chroma == 3 and bool(bits.u())
            bits.ue()
            bits.ue()
            bits.u()
            if bits.u():
                for i in range(12 if chroma == 3 else 8):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
        frame_num_bits, kind = bits.ue() + 4, bits.ue()
        poc_bits = bits.ue() + 4 if kind == 0 else 0
        deltas = False
        if kind == 1:
            deltas = not bits.u()
            bits.se()
            bits.se()
            for _ in range(bits.ue()):
                bits.se()
        bits.ue()
        bits.u()
        bits.ue()
        bits.ue()
        frames_only = bool(bits.u())
        found = _Sequence(frame_num_bits, poc_bits, deltas, frames_only, separate)
        self._sequences[number] = found

    def _read_pps(self, bits: _Bits) -> None:
        number, sequence = bits.ue(), bits.ue()
        bits.u()
        bottom = bool(bits.u())
        groups = bits.ue() + 1
        if groups > 1:
            _skip_slice_groups(bits, groups)
        active = (bits.ue() + 1, bits.ue() + 1)
        bits.u(3)
        for _ in range(3):
            bits.se()
        bits.u(2)
        self._pictures[number] = _Picture(sequence, bottom, active, bool(bits.u()))

    def _read_slice(self, bits: _Bits, idr: bool) -> int:
        bits.ue()
        kind = bits.ue() % 5
        picture = self._pictures[bits.ue()]
        sequence = self._sequences[picture.sequence]
        if sequence.separate_planes:
            bits.u(2)
        bits.u(sequence.frame_num_bits)
        field = not sequence.frames_only and bool(bits.u())
        if field:
            bits.u()
        if idr:
            bits.ue()
        if sequence.poc_bits:
            bits.u(sequence.poc_bits)
        deltas = int(sequence.has_poc_deltas)
        if (sequence.poc_bits or deltas) and picture.bottom_field_order and not field:
            deltas += 1
        for _ in range(deltas):
            bits.se()
        if picture.redundant_counts:
            bits.ue()
        if kind not in (P_SLICE, B_SLICE, SP_SLICE):
            return 0
        if kind == B_SLICE:
            bits.u()
        lists = 2 if kind == B_SLICE else 1
        active = picture.active[:lists]
        if bits.u():
            active = tuple(bits.ue() + 1 for _ in range(lists))
        if max(active) > MOST_REFERENCES:
            raise ValueError("more references than a picture can have")
        return max(active)


def _configured(record: bytes) -> Iterator[bytes]:
    """Parameter sets of an avcC record (ISO/IEC 14496-15, 5.3.3.1)."""
    at = 5
    for mask in (31, 255):
        if at >= len(record):
            return
        count, at = record[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            yield record[at + 2 : at + 2 + size]
            at += 2 + size


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """7.3.2.1.1.1"""
    if not bits.u():
        return
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _skip_slice_groups(bits: _Bits, groups: int) -> None:
    """The maps of 7.3.2.2 that tell which macroblock belongs to which slice group."""
    kind = bits.ue()
    if kind == 0:
        for _ in range(groups):
            bits.ue()
    elif kind == 2:
        for _ in range(2 * (groups - 1)):
            bits.ue()
    elif kind in (3, 4, 5):
        bits.u()
        bits.ue()
    elif kind == 6:
        for _ in range(bits.ue() + 1):
            bits.u((groups - 1).bit_length())
