"""The reconstruction oracle: side information is right when it rebuilds FFmpeg's pixels.

On a stream coded without deblocking and SAO, prediction plus residual is the decoded picture. From
FFmpeg's pixels and a decoder's outputs alone (``Signals``), every inter 4x4 block is interpolated
(ITU-T H.265, 8.5.3.3) and every intra transform unit predicted (8.4.4.2); what differs by a single
level is a mismatch. Nothing is imported from the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAPS = np.array(
    [
        [0, 0, 0, 64, 0, 0, 0, 0],
        [-1, 4, -10, 58, 17, -5, 1, 0],
        [-1, 4, -11, 40, 40, -11, 4, -1],
        [0, 1, -5, 17, 58, -10, 4, -1],
    ],
    np.int64,
)
ANGLES = [0, 0, 32, 26, 21, 17, 13, 9, 5, 2, 0, -2, -5, -9, -13, -17, -21, -26]
ANGLES += [-32, -26, -21, -17, -13, -9, -5, -2, 0, 2, 5, 9, 13, 17, 21, 26, 32]
INVERSE = [-4096, -1638, -910, -630, -482, -390, -315, -256, -315, -390, -482, -630, -910, -1638]
INVERSE += [-4096]
"""Of modes 11 to 25."""
SMOOTHED_FROM = {4: 99, 8: 7, 16: 1, 32: 0}


@dataclass
class Signals:
    """A decoder's outputs for one picture; h4, w4 count 4x4 blocks, INTRA is mode 0.

    motion (h4, w4, 2, 2), delta (h4, w4, 2) with 0 = unused, weights (h4, w4, 2, 3), residual
    (H, W), mode, qp (luma), intra_mode (h4, w4), transform_size (h4, w4) in pixels with 0 = no
    transform unit, slice_address (CTBs down, across).
    """

    sequence: int
    poc: int
    bit_depth: int
    motion: np.ndarray
    delta: np.ndarray
    weights: np.ndarray
    residual: np.ndarray
    mode: np.ndarray
    qp: np.ndarray
    intra_mode: np.ndarray
    transform_size: np.ndarray
    slice_address: np.ndarray
    ctb_size: int
    strong_smoothing: bool
    constrained_intra: bool


@dataclass
class Verdict:
    """What was checked, and how much of it did not fit."""

    inter_blocks: int = 0
    wrong_inter: int = 0
    intra_units: int = 0
    wrong_intra: int = 0


def check(frames: list[Signals], pictures: list[np.ndarray]) -> Verdict:
    """Frames and FFmpeg's luma (H, W) in the same (presentation) order."""
    verdict = Verdict()
    by_poc = {(f.sequence, f.poc): p for f, p in zip(frames, pictures, strict=True)}
    for frame, picture in zip(frames, pictures, strict=True):
        wrong, counted = inter_mismatches(frame, picture.astype(np.int64), by_poc)
        verdict.wrong_inter += int(wrong.sum())
        verdict.inter_blocks += int(counted.sum())
        units = list(intra_units(frame))
        verdict.intra_units += len(units)
        luma = picture.astype(np.int64)
        verdict.wrong_intra += sum(not intra_fits(frame, luma, *unit) for unit in units)
    return verdict


def inter_mismatches(frame, picture, by_poc) -> tuple[np.ndarray, np.ndarray]:
    """(h4, w4) bool: inter blocks that differ, and inter blocks."""
    used = frame.delta != 0
    inter = used.any(-1)
    wrong = np.zeros(inter.shape, bool)
    rows, columns = np.nonzero(inter)
    if not len(rows):
        return wrong, inter
    shift = 14 - frame.bit_depth
    predicted = np.zeros((2, len(rows), 4, 4), np.int64)
    for side in range(2):
        on = np.nonzero(used[rows, columns, side])[0]
        if len(on):
            predicted[side, on] = _interpolate(frame, side, rows[on], columns[on], by_poc)
    both = used[rows, columns].all(-1)
    first = np.where(used[rows, columns, 0], 0, 1)
    single = predicted[first, np.arange(len(rows))]
    weights = frame.weights[rows, columns].astype(np.int64)
    own = weights[np.arange(len(rows)), first]
    plain = np.where(
        both[:, None, None],
        (predicted.sum(0) + (1 << shift)) >> (shift + 1),
        (single + (1 << shift >> 1)) >> shift,
    )
    log2 = (weights[:, 0, 0] + shift)[:, None, None]
    log2 = np.where(weights[:, 0, 0, None, None] < 0, 1, log2)
    scale = 1 << (frame.bit_depth - 8)
    one = ((single * own[:, 1, None, None] + (1 << (log2 - 1))) >> log2) + own[
        :, 2, None, None
    ] * scale
    sides = weights[:, :, 1, None, None] * predicted.transpose(1, 0, 2, 3)
    offsets = (weights[:, :, 2].sum(1) * scale)[:, None, None]
    two = (sides.sum(1) + ((offsets + 1) << log2)) >> (log2 + 1)
    explicit = np.where(both[:, None, None], two, one)
    found = np.where(weights[:, 0, 0, None, None] < 0, plain, explicit)
    top = (1 << frame.bit_depth) - 1
    rebuilt = np.clip(np.clip(found, 0, top) + _cells(frame.residual, rows, columns), 0, top)
    differs = rebuilt != _cells(picture, rows, columns)
    differs &= _inside(picture.shape, rows, columns)
    wrong[rows, columns] = differs.any((1, 2))
    return wrong, inter


def _cells(plane, rows, columns) -> np.ndarray:
    """(n, 4, 4) samples of blocks; beyond the picture's edge the last ones repeat."""
    y = np.minimum(rows[:, None] * 4 + np.arange(4), plane.shape[0] - 1)
    x = np.minimum(columns[:, None] * 4 + np.arange(4), plane.shape[1] - 1)
    return plane[y[:, :, None], x[:, None, :]].astype(np.int64)


def _inside(shape, rows, columns) -> np.ndarray:
    y, x = rows[:, None] * 4 + np.arange(4) < shape[0], columns[:, None] * 4 + np.arange(4)
    return y[:, :, None] & (x < shape[1])[:, None, :]


def _interpolate(frame, side, rows, columns, by_poc) -> np.ndarray:
    """(n, 4, 4) prediction samples of 14 bits (8.5.3.3.3)."""
    delta = frame.delta[rows, columns, side].astype(np.int64)
    vectors = frame.motion[rows, columns, side].astype(np.int64)
    out = np.zeros((len(rows), 4, 4), np.int64)
    for step in np.unique(delta):
        on = np.nonzero(delta == step)[0]
        reference = by_poc[frame.sequence, frame.poc - int(step)].astype(np.int64)
        height, width = reference.shape
        y = rows[on] * 4 + (vectors[on, 1] >> 2)
        x = columns[on] * 4 + (vectors[on, 0] >> 2)
        y = np.clip(y[:, None] + np.arange(-3, 8), 0, height - 1)
        x = np.clip(x[:, None] + np.arange(-3, 8), 0, width - 1)
        window = reference[y[:, :, None], x[:, None, :]]  # (n, 11, 11)
        across, down = TAPS[vectors[on, 0] & 3], TAPS[vectors[on, 1] & 3]
        slid = np.lib.stride_tricks.sliding_window_view(window, 8, 2)  # (n, 11, 4, 8)
        lines = np.einsum("nrck,nk->nrc", slid, across) >> (frame.bit_depth - 8)
        slid = np.lib.stride_tricks.sliding_window_view(lines, 8, 1)  # (n, 4, 4, 8)
        # A whole-pixel tap is 64 times the sample: the second shift of 6 undoes it exactly.
        out[on] = np.einsum("nrck,nk->nrc", slid, down) >> 6
    return out


def intra_units(frame: Signals):
    """(y, x, size) of every intra transform unit that lies wholly in the picture."""
    height, width = frame.residual.shape
    for size in (4, 8, 16, 32):
        step = size // 4
        on = (frame.transform_size == size) & (frame.mode == 0)
        for i, j in zip(*np.nonzero(on[::step, ::step]), strict=True):
            y, x = int(i) * size, int(j) * size
            if y + size <= height and x + size <= width:
                yield y, x, size


def intra_fits(frame: Signals, picture: np.ndarray, y: int, x: int, size: int) -> bool:
    """Prediction of the unit plus its residual equals the decoded pixels."""
    left, corner, above = _neighbours(frame, picture, y, x, size)
    mode = int(frame.intra_mode[y // 4, x // 4])
    predicted = predict_intra(
        left, corner, above, mode, size, frame.bit_depth, frame.strong_smoothing
    )
    rebuilt = predicted + frame.residual[y : y + size, x : x + size]
    rebuilt = np.clip(rebuilt, 0, (1 << frame.bit_depth) - 1)
    return bool((rebuilt == picture[y : y + size, x : x + size]).all())


def _order(frame: Signals, y: int, x: int) -> int:
    """Place of a 4x4 block in decoding order, without tiles."""
    size = frame.ctb_size
    across = frame.slice_address.shape[1]
    place, cy, cx = 0, (y % size) // 4, (x % size) // 4
    for bit in range(4):
        place |= (cx >> bit & 1) << (2 * bit) | (cy >> bit & 1) << (2 * bit + 1)
    return ((y // size) * across + x // size) * 256 + place


def _available(frame: Signals, y: int, x: int, yn: int, xn: int) -> bool:
    height, width = frame.residual.shape
    if yn < 0 or xn < 0 or yn >= height or xn >= width:
        return False
    size = frame.ctb_size
    same = frame.slice_address[y // size, x // size] == frame.slice_address[yn // size, xn // size]
    usable = not frame.constrained_intra or frame.mode[yn // 4, xn // 4] == 0
    return bool(same and usable and _order(frame, yn, xn) < _order(frame, y, x))


def _neighbours(frame, picture, y, x, size):
    """Left (2n,), corner, above (2n,) samples, absent ones substituted (8.4.4.2.2)."""
    places = [(y + i, x - 1) for i in range(2 * size - 1, -1, -1)] + [(y - 1, x - 1)]
    places += [(y - 1, x + i) for i in range(2 * size)]
    known: list[int | None] = []
    answers: dict[tuple[int, int], bool] = {}
    for yn, xn in places:
        block = (yn // 4, xn // 4)
        if block not in answers:
            answers[block] = _available(frame, y, x, yn, xn)
        known.append(int(picture[yn, xn]) if answers[block] else None)
    if all(value is None for value in known):
        known = [1 << (frame.bit_depth - 1)] * len(known)
    if known[0] is None:
        known[0] = next(value for value in known if value is not None)
    for i in range(1, len(known)):
        if known[i] is None:
            known[i] = known[i - 1]
    line = np.array(known, np.int64)
    return line[: 2 * size][::-1], line[2 * size], line[2 * size + 1 :]


def predict_intra(left, corner, above, mode, size, bit_depth, strong) -> np.ndarray:
    """(size, size) luma prediction (8.4.4.2.3 - 8.4.4.2.6)."""
    distance = min(abs(mode - 26), abs(mode - 10))
    if mode != 1 and distance > SMOOTHED_FROM[size]:
        left, corner, above = _smooth(left, corner, above, size, bit_depth, strong)
    n = np.arange(size)
    if mode == 0:
        log2 = size.bit_length() - 1
        total = (size - 1 - n) * left[:size, None] + (n + 1) * above[size]
        total += (size - 1 - n)[:, None] * above[:size] + (n + 1)[:, None] * left[size]
        return (total + size) >> (log2 + 1)
    if mode == 1:
        return _dc(left[:size], above[:size], size)
    if mode >= 18:
        return _angular(left, corner, above, mode, size, bit_depth)
    turned = _angular(above, corner, left, 36 - mode, size, bit_depth)
    return turned.T


def _smooth(left, corner, above, size, bit_depth, strong):
    limit = 1 << (bit_depth - 5)
    if (
        strong
        and size == 32
        and abs(corner + above[63] - 2 * above[31]) < limit
        and abs(corner + left[63] - 2 * left[31]) < limit
    ):
        n = np.arange(63)
        lines = [
            np.append(((63 - n) * corner + (n + 1) * line[63] + 32) >> 6, line[63])
            for line in (left, above)
        ]
        return lines[0], corner, lines[1]
    line = np.concatenate([left[::-1], [corner], above])
    inner = (line[:-2] + 2 * line[1:-1] + line[2:] + 2) >> 2
    line = np.concatenate([line[:1], inner, line[-1:]])
    return line[: 2 * size][::-1], line[2 * size], line[2 * size + 1 :]


def _dc(left, above, size) -> np.ndarray:
    mean = (left.sum() + above.sum() + size) // (2 * size)
    out = np.full((size, size), mean, np.int64)
    if size < 32:
        out[0, :] = (above + 3 * mean + 2) >> 2
        out[:, 0] = (left + 3 * mean + 2) >> 2
        out[0, 0] = (left[0] + 2 * mean + above[0] + 2) >> 2
    return out


def _angular(left, corner, above, mode, size, bit_depth) -> np.ndarray:
    """Modes 18 to 34; the others are these, turned."""
    angle = ANGLES[mode]
    line = {0: int(corner)} | {i + 1: int(v) for i, v in enumerate(above)}
    last = (size * angle) >> 5
    if last < -1:
        inverse = INVERSE[mode - 11]
        for i in range(-1, last - 1, -1):
            line[i] = int(left[-1 + ((i * inverse + 128) >> 8)])
    out = np.zeros((size, size), np.int64)
    for y in range(size):
        whole, part = ((y + 1) * angle) >> 5, ((y + 1) * angle) & 31
        for x in range(size):
            a = line[x + whole + 1]
            b = line[x + whole + 2] if part else 0
            out[y, x] = ((32 - part) * a + part * b + 16) >> 5
    if angle == 0 and size < 32:
        out[:, 0] = np.clip(above[0] + ((left[:size] - corner) >> 1), 0, (1 << bit_depth) - 1)
    return out
