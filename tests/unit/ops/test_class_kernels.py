"""The head's native and Triton kernels against the reference; Triton's on the GPU where there is
one, else in triton's interpreter, and that they compile for one.

B samples, T rows of a tile, C local rows, S drawn ones, D width.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovtrain.ops import class_kernels
from ovtrain.ops.class_kernels import (
    Kernels,
    NativeKernels,
    RowRule,
    RowState,
    RowStep,
    Tile,
    TorchKernels,
)
from tests.helpers.triton_programs import fresh_module, interpret, ptx, recorded_launches

if os.environ.get("CI"):  # there, its absence is a failure
    import triton
else:
    triton = pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFERENCE = TorchKernels()
NOTHING = float("-inf")
BOTH = [torch.float32, torch.bfloat16]
B, C, S = 5, 20, 7
RULE = RowRule(beta1=0.9, keep2=0.99, take2=0.01, eps=1e-8)


def fresh_kernels() -> Kernels:
    return fresh_module("ovtrain.ops.class_triton").TritonKernels()


@pytest.fixture(params=["native", "triton"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "native":
        if class_kernels.native() is None or DEVICE == "cuda":
            pytest.skip("the extension is not built, or tensors are on a GPU")
        return NativeKernels()
    if DEVICE == "cpu":
        interpret(monkeypatch)
    return fresh_kernels()


def random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)


def tile(columns: int, dtype: torch.dtype = torch.float32, scale: float = 20.0) -> Tile:
    """Cosines in (-1, 1); two padded columns, some masked entries and one masked sample."""
    normal = random(columns)
    cosines = torch.tanh(normal(B, columns))
    cosines[normal(B, columns) > 2] = NOTHING
    cosines[3] = NOTHING
    weight = normal(columns).exp()
    weight[-2:] = 0
    return Tile(cosines.to(dtype), normal(B).abs() / B, weight, scale)


def row_state(width: int, dtype: torch.dtype, first: torch.dtype | None, per_row: bool) -> RowState:
    normal = random(width)
    rows, moment = normal(C, width).to(dtype), normal(C, width) * 0.1
    second = normal(*((C,) if per_row else (C, width))).square() * 0.01
    return RowState(rows, None if first is None else moment.to(first), second)


def row_step(width: int, dtype: torch.dtype = torch.float32) -> RowStep:
    """A gradient with padding behind its rows, as the head holds it."""
    normal = random(width + 1)
    index = torch.randperm(C, generator=torch.Generator().manual_seed(0))[:S].to(DEVICE)
    decay, c1, c2 = (1 + 0.1 * normal(S).abs() for _ in range(3))
    gradient, clip = normal(S + 4, width).to(dtype), torch.tensor(0.37, device=DEVICE)
    return RowStep(index, gradient, clip, 0.01, 1 / decay, c1, c2, first_row=1000, key=0xDEADBEEF)


def assert_rounded_alike(found: Tensor, wanted: Tensor) -> None:
    """Equal but for the odd element whose float32 values, a few units in the last place apart, fall
    to different sides: one in 2^16 per unit and element, so one or none of a test's thousand."""
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-30)
    assert (found != wanted).sum() <= 1


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """float32: sums of a few thousand terms in another order, exp and division that err in the last
    places. bfloat16: one of its steps, where rounding fell to the other side."""
    rtol = 2**-7 if wanted.dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-7)


# First in this file: triton 3.4 does not take back what its interpreter changes.
@pytest.mark.parametrize("dtype", BOTH)
def test_kernels_compile_for_a_gpu(dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every launch of every kernel, as far as a program for an H100."""
    launches = recorded_launches(monkeypatch, tmp_path)
    kernels, other = fresh_kernels(), torch.bfloat16
    call_tile_kernels(kernels, tile(64, dtype), torch.empty(B, 64, dtype=other))
    call_row_kernels(kernels, torch.empty(C, 64, dtype=dtype), torch.empty(S, 64, dtype=other))
    for first in (None, *BOTH):
        for per_row in (False, True):
            kernels.update(row_state(64, dtype, first, per_row), RULE, row_step(64, dtype))
    assert len({kernel.__name__ for kernel, *_ in launches}) == 7
    for launch in launches:
        assert ".entry" in ptx(*launch)


def call_tile_kernels(kernels: Kernels, tile: Tile, out: Tensor) -> None:
    sums = torch.zeros(B, device=out.device)
    kernels.logistic(tile, -10.0, sums)
    kernels.statistics(tile, 0.9, sums, sums)
    kernels.exponential(tile, 0.9, sums, out)


def call_row_kernels(kernels: Kernels, rows: Tensor, out: Tensor) -> None:
    index, some = torch.arange(S), torch.ones(S)
    kernels.unit_rows(rows, index, out, some)
    kernels.pull(rows, index, some, torch.arange(B + 1), torch.empty(B, rows.shape[1]))
    kernels.tangent(rows[:S], out, some, some)


@pytest.mark.parametrize("width", [48, 96])
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("out_dtype", BOTH)
def test_unit_rows(kernels: Kernels, dtype, out_dtype, width: int):
    normal = random(width)
    rows = normal(C, width).to(dtype)
    index = torch.tensor([19, 0, 3, 7, 4, 11, 2], device=DEVICE)
    rows[3], rows[7, 5], rows[4, 5] = 0, float("nan"), float("inf")
    found, wanted = (
        (torch.full((S + 4, width), 7.0, dtype=out_dtype, device=DEVICE), normal(S))
        for _ in range(2)
    )
    kernels.unit_rows(rows, index, *found)
    REFERENCE.unit_rows(rows, index, *wanted)
    assert not found[0][S:].any()
    assert found[1].isnan().tolist() == [False, False, False, True, True, False, False]
    for a, b in zip(found, wanted, strict=True):
        assert_near(a.nan_to_num(3.0), b.nan_to_num(3.0))


@pytest.mark.parametrize("dtype", BOTH)
def test_pull(kernels: Kernels, dtype):
    """Samples with several pairs, one with none, the first and the last among them."""
    normal = random(0)
    rows, weight = normal(C, 48).to(dtype), normal(S)
    index = torch.tensor([19, 0, 3, 3, 4, 11, 2], device=DEVICE)
    offsets = torch.tensor([0, 3, 3, 4, 6, 7], device=DEVICE)
    found, wanted = (torch.ones(B, 48, device=DEVICE) for _ in range(2))
    kernels.pull(rows, index, weight, offsets, found)
    REFERENCE.pull(rows, index, weight, offsets, wanted)
    by_hand = 1 + weight[3] * rows[3].float()
    torch.testing.assert_close(found[2], by_hand, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    nothing = torch.zeros(B + 1, dtype=torch.int64, device=DEVICE)
    kernels.pull(rows, index[:0], weight[:0], nothing, found)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [48, 96])
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("unit_dtype", BOTH)
def test_tangent(kernels: Kernels, dtype, unit_dtype, width: int):
    normal = random(width)
    unit = torch.nn.functional.normalize(normal(S + 4, width)).to(unit_dtype)
    inverse, gradient = normal(S).abs(), normal(S, width).to(dtype)
    found, wanted = ((gradient.clone(), torch.empty(S, device=DEVICE)) for _ in range(2))
    kernels.tangent(found[0], unit, inverse, found[1])
    REFERENCE.tangent(wanted[0], unit, inverse, wanted[1])
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("columns", [300, 2050])
@pytest.mark.parametrize("dtype", BOTH)
def test_logistic(kernels: Kernels, dtype, columns: int):
    found, wanted = (tile(columns, dtype) for _ in range(2))
    losses = [torch.arange(B, device=DEVICE).float() for _ in range(2)]
    kernels.logistic(found, -10.0, losses[0])
    REFERENCE.logistic(wanted, -10.0, losses[1])
    assert_near(losses[0], losses[1])
    assert losses[0][3] == 3
    assert_near(found.cosines, wanted.cosines)
    assert not found.cosines[3].any()


def test_logistic_terms_keep_their_digits_far_below_and_above_the_bias(kernels: Kernels):
    """exp(-30) is lost in 1 + exp(-30)."""
    for z in (-60.0, -30.0, -16.0, -1.0, 0.0, 1.0, 30.0):
        one = torch.ones(1, device=DEVICE)
        logit = Tile(one[:, None] * z, one, one, 1.0)
        loss = torch.zeros(1, device=DEVICE)
        kernels.logistic(logit, 0.0, loss)
        exact = torch.tensor([z], dtype=torch.float64, device=DEVICE)
        wanted = torch.nn.functional.softplus(exact, threshold=100), torch.sigmoid(exact)
        torch.testing.assert_close(loss.double(), wanted[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(logit.cosines[0].double(), wanted[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("columns", [300, 2050])
@pytest.mark.parametrize("ceiling", [0.9, float("inf")])
def test_statistics_of_two_tiles(kernels: Kernels, ceiling: float, columns: int):
    tiles = tile(columns), tile(columns + 1)
    tiles[0].cosines[2] = NOTHING
    found, wanted = ([torch.full((B,), x, device=DEVICE) for x in (NOTHING, 0.0)] for _ in range(2))
    for each in tiles:
        kernels.statistics(each, ceiling, *found)
        REFERENCE.statistics(each, ceiling, *wanted)
        assert_near(found[0], wanted[0])
        assert_near(found[1], wanted[1])
    assert found[0][3] == NOTHING
    assert found[1][3] == 0


def test_padding_has_no_part_in_the_peak(kernels: Kernels):
    """Far below 0, where padding's cosine of 0 would make every sum vanish."""
    cosines = torch.tensor([[-0.9, -0.8, 0.0, 0.0]], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    padded = Tile(cosines, one, torch.tensor([1.0, 2.0, 0.0, 0.0], device=DEVICE), 200.0)
    for each in (kernels, REFERENCE):
        peak, total = one * NOTHING, one * 0
        each.statistics(padded, 2.0, peak, total)
        assert peak.item() == pytest.approx(-160)
        assert total.item() == pytest.approx(2)
        out = torch.empty_like(cosines)
        each.exponential(padded, 2.0, peak, out)
        assert out[0, 1].item() == pytest.approx(400, rel=1e-5)
        assert not out[0, 2:].any()


@pytest.mark.parametrize("columns", [300, 2050])
@pytest.mark.parametrize("dtypes", [(a, b) for a in BOTH for b in (a, torch.bfloat16)])
@pytest.mark.parametrize("ceiling", [0.9, float("inf")])
def test_exponential(kernels: Kernels, ceiling: float, dtypes, columns: int):
    """In place where the types are equal. A sample without negatives: no peak, no gradient."""
    logits = tile(columns, dtypes[0])
    peak = (logits.cosines.float() * logits.scale).amax(1).clamp(min=-1e30)
    found, wanted = (replace(logits, cosines=logits.cosines.clone()) for _ in range(2))
    outs = [
        x.cosines if dtypes[0] == dtypes[1] else x.cosines.to(dtypes[1]) for x in (found, wanted)
    ]
    kernels.exponential(found, ceiling, peak, outs[0])
    REFERENCE.exponential(wanted, ceiling, peak, outs[1])
    assert_near(*outs)
    assert not outs[0][3].any()


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("first", [None, *BOTH])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 48), (torch.bfloat16, 96)])
def test_update(kernels: Kernels, dtype, width: int, first: torch.dtype | None, per_row: bool):
    found, wanted = (row_state(width, dtype, first, per_row) for _ in range(2))
    before, step = found.rows.clone(), row_step(width, dtype)
    kernels.update(found, RULE, step)
    REFERENCE.update(wanted, RULE, step)
    torch.testing.assert_close(found.second, wanted.second, rtol=1e-6, atol=0)
    pairs = [(found.rows, wanted.rows)]
    if found.first is not None:
        assert wanted.first is not None
        pairs.append((found.first, wanted.first))
    for a, b in pairs:
        if a.dtype == torch.bfloat16:
            assert_rounded_alike(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    left = torch.ones(C, dtype=torch.bool, device=DEVICE)
    left[step.index] = False
    assert torch.equal(found.rows[left], before[left])
    assert (found.rows[~left] != before[~left]).any(1).all()


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("first", [None, *BOTH])
@pytest.mark.parametrize("dtype", BOTH)
def test_a_clip_factor_that_is_no_number_changes_nothing(
    kernels: Kernels, dtype, first: torch.dtype | None, per_row: bool
):
    state, kept = (row_state(48, dtype, first, per_row) for _ in range(2))
    step = row_step(48, dtype)
    gradient = torch.full_like(step.gradient, float("nan"))
    for harmed in (step.gradient, gradient):
        refused = replace(step, gradient=harmed, clip=torch.tensor(float("nan"), device=DEVICE))
        kernels.update(state, RULE, refused)
    for name in ("rows", "first", "second"):
        mine, its = getattr(state, name), getattr(kept, name)
        assert (mine is None and its is None) or torch.equal(mine, its), name


@pytest.mark.parametrize("first_row", [0, 5, 2**31 - 2, 2**32 - 3, 2**33 + 1])
@pytest.mark.parametrize("key", [0, 1, 2**31, 2**32 - 1])
def test_rounding_uses_the_same_bits_as_the_reference(kernels: Kernels, key: int, first_row: int):
    """Numbers of few digits: float32 holds every product and sum exactly, in any order."""
    width, generator = 96, torch.Generator().manual_seed(1)
    coarse, fine = (
        lambda *shape, bits=bits: torch.randint(1 - 2**bits, 2**bits, shape, generator=generator)
        for bits in (7, 18)
    )
    rows, moment = (coarse(C, width).bfloat16().to(DEVICE) / 64 for _ in range(2))
    rows[0, :2] = torch.tensor([NOTHING, 3.38e38])
    gradient = fine(S, width).to(DEVICE) / 2**16
    gradient.view(torch.int32)[1, 3] = 2**31 - 1  # a NaN that any noise would turn into -0
    states = [RowState(rows.clone(), moment.clone(), torch.ones(C, device=DEVICE)) for _ in "ab"]
    step = replace(row_step(width), gradient=gradient, clip=torch.tensor(0.5, device=DEVICE))
    decay = torch.full((S,), 1 + 2**-9 + 2**-13, device=DEVICE)
    step = replace(step, lr=0.0, decay=decay, index=torch.arange(S, device=DEVICE))
    for each, state in zip((kernels, REFERENCE), states, strict=True):
        each.update(state, replace(RULE, beta1=0.5), replace(step, first_row=first_row, key=key))
    found, wanted = ([state.rows, state.first] for state in states)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert states[0].first is not None
    up = states[0].first[:S].float() > torch.lerp(moment[:S].float(), gradient * 0.5, 0.5)
    assert 0.4 < up.float().mean() < 0.6


@pytest.mark.skipif(class_kernels.native() is None, reason="the extension is not built")
def test_native_kernels_refuse_what_does_not_fit():
    native, rows = NativeKernels(), torch.ones(3, 4)
    one = torch.ones(1)
    with pytest.raises(ValueError, match="index lies outside"):
        native.unit_rows(rows, torch.tensor([3]), torch.empty(1, 4), one)
    with pytest.raises(ValueError, match="must be float32 or bfloat16"):
        native.unit_rows(rows.double(), torch.tensor([0]), torch.empty(1, 4), one)
    with pytest.raises(ValueError, match="shapes do not fit"):
        native.unit_rows(rows, torch.tensor([0]), torch.empty(1, 5), one)
    for wrong in (torch.ones(4, 1).T[:, :0], torch.ones(4, 2)[:, :1], one.double()):
        with pytest.raises(TypeError):  # a copy would be written to
            native.tangent(torch.ones(1, 4), torch.ones(1, 4), one, wrong)
    with pytest.raises(TypeError):
        native.tangent(torch.ones(4, 1).expand(4, 4), torch.ones(4, 4), one, one)
    with pytest.raises(ValueError, match="offsets do not fit"):
        native.pull(rows, torch.tensor([0]), one, torch.tensor([0, 2]), torch.empty(1, 4))
