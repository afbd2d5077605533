"""Row-sparse optimizers against torch's dense ones, row by row, and against their formulas."""

import math

import pytest
import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.ops import class_kernels
from ovtrain.ops.class_kernels import TorchKernels, mix32
from ovtrain.optim.sparse_rows import SparseRows

OPTIM = OptimConfig(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
LR, ROWS, WIDTH = 1e-2, 7, 5
ONE = torch.tensor(1.0)
KERNELS = ["torch"] + (["native"] if class_kernels.native() is not None else [])


@pytest.fixture(params=KERNELS, autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "torch":
        monkeypatch.setattr("ovtrain.optim.sparse_rows.kernels_for", lambda _: TorchKernels())


def optimizer(start: Tensor, **head) -> SparseRows:
    return SparseRows(start, HeadConfig(**head), OPTIM, first_row=0, seed=3)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def gradients(count: int, size: int = ROWS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, WIDTH, generator=generator) for _ in range(count)]


def everything() -> Tensor:
    return torch.arange(ROWS)


def adamw(start: Tensor, steps: list[Tensor]) -> Tensor:
    """torch's AdamW on a parameter of its own."""
    parameter = torch.nn.Parameter(start.clone())
    dense = torch.optim.AdamW([parameter], lr=LR, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for gradient in steps:
        parameter.grad = gradient.clone()
        dense.step()
    return parameter.detach()


@pytest.mark.parametrize("name", ["adamw", "rowwise_adamw", "rowwise_adagrad"])
def test_a_refused_step_leaves_rows_moments_counts_and_debts_alone(rows: Tensor, name: str):
    sparse = optimizer(rows, optimizer=name)
    first, second, third = gradients(3)
    sparse.step(torch.tensor([0, 2]), first[[0, 2]], LR, 0, ONE)
    before = {key: tensor.clone() for key, tensor in sparse.state().items()}
    sparse.step(torch.tensor([1, 2]), second[[1, 2]] * math.nan, LR, 1, ONE * math.nan)
    for key, tensor in sparse.state().items():
        assert torch.equal(tensor, before[key]), key
    sparse.step(torch.tensor([1, 2]), third[[1, 2]], LR, 2, ONE)
    assert sparse.steps.tolist() == [1, 1, 2, 0, 0, 0, 0]


PARTS = [[0, 1, 2], [2, 3], [0, 2, 5, 6], [2], [1, 2, 6]]


def run(sparse: SparseRows, steps: list[Tensor], parts: list[list[int]] = PARTS) -> None:
    for number, (index, gradient) in enumerate(zip(parts, steps, strict=True)):
        sparse.step(torch.tensor(index), gradient[index], LR, number, ONE)


def test_all_rows_every_step_is_adamw(rows: Tensor):
    steps, sparse = gradients(6), optimizer(rows.clone())
    run(sparse, steps, [list(range(ROWS))] * 6)
    torch.testing.assert_close(sparse.held.rows, adamw(rows, steps), rtol=1e-6, atol=1e-7)


def test_dense_updates_are_adamw_with_gradients_of_zero(rows: Tensor):
    steps, sparse = gradients(5), optimizer(rows.clone(), dense_updates=True)
    run(sparse, steps)
    zeroed = [torch.zeros_like(rows) for _ in steps]
    for index, gradient, whole in zip(PARTS, steps, zeroed, strict=True):
        whole[index] = gradient[index]
    torch.testing.assert_close(sparse.held.rows, adamw(rows, zeroed), rtol=1e-6, atol=1e-7)


def test_decay_is_paid_late_but_in_full(rows: Tensor):
    """A row that sits steps out ends where AdamW without decay puts it, decayed in each step. With
    gradients of zero nothing but decay moves a row."""
    sparse = optimizer(rows.clone())
    run(sparse, [torch.zeros_like(rows)] * 5)
    owed = sparse.pending(everything())
    decayed = sparse.held.rows * owed[:, None]
    torch.testing.assert_close(decayed, rows * (1 - LR * 0.1) ** 5, rtol=1e-6, atol=0)
    assert owed.tolist() == pytest.approx([(1 - LR * 0.1) ** k for k in (2, 0, 0, 3, 5, 2, 0)])


def test_each_row_counts_its_own_steps(rows: Tensor):
    """Undecayed, each row equals AdamW on the gradients that it saw alone."""
    still = OptimConfig(beta2=0.99, weight_decay=0.0)
    steps = gradients(5)
    sparse = SparseRows(rows.clone(), HeadConfig(), still, first_row=0, seed=0)
    run(sparse, steps)
    for row in range(ROWS):
        seen = [g[row : row + 1] for g, part in zip(steps, PARTS, strict=True) if row in part]
        parameter = torch.nn.Parameter(rows[row : row + 1].clone())
        alone = torch.optim.AdamW([parameter], lr=LR, betas=(0.9, 0.99), weight_decay=0.0)
        for gradient in seen:
            parameter.grad = gradient.clone()
            alone.step()
        found = sparse.held.rows[row : row + 1]
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-6, atol=1e-7)
    assert sparse.steps.tolist() == [2, 2, 5, 1, 0, 1, 2]


def test_untouched_rows_keep_every_bit(rows: Tensor):
    sparse = optimizer(rows.clone())
    sparse.step(torch.tensor([3]), torch.ones(1, 5), LR, 0, ONE)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(sparse.held.rows[others], rows[others])
    assert sparse.held.first is not None
    assert not sparse.held.first[others].any()


def test_rowwise_adagrad_is_its_formula(rows: Tensor):
    """Duchi et al., with one sum of mean squares per row."""
    steps, sparse = gradients(5), optimizer(rows.clone(), optimizer="rowwise_adagrad")
    run(sparse, steps)
    wanted, total = rows.double(), torch.zeros(ROWS, dtype=torch.float64)
    for part, gradient in zip(PARTS, steps, strict=True):
        wanted = wanted * (1 - LR * 0.1)
        for row in part:
            g = gradient[row].double()
            total[row] += g.square().mean()
            wanted[row] -= LR * g / (total[row].sqrt() + 1e-8)
    owed = sparse.pending(everything())[:, None]
    torch.testing.assert_close((sparse.held.rows * owed).double(), wanted, rtol=1e-6, atol=1e-6)
    assert sparse.held.first is None
    assert sparse.held.second.shape == (ROWS,)


def test_rowwise_adamw_shares_one_second_moment(rows: Tensor):
    steps, sparse = gradients(4), optimizer(rows.clone(), optimizer="rowwise_adamw")
    run(sparse, steps, [list(range(ROWS))] * 4)
    wanted = rows.double()
    first, second = torch.zeros(ROWS, WIDTH).double(), torch.zeros(ROWS, 1).double()
    for t, gradient in enumerate(steps, 1):
        g = gradient.double()
        first = 0.9 * first + 0.1 * g
        second = 0.99 * second + 0.01 * g.square().mean(1, keepdim=True)
        scale = (second / (1 - 0.99**t)).sqrt() + 1e-8
        wanted = wanted * (1 - LR * 0.1) - LR * first / (1 - 0.9**t) / scale
    torch.testing.assert_close(sparse.held.rows.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_clip_factor_scales_the_gradient(rows: Tensor):
    half, other = optimizer(rows.clone()), optimizer(rows.clone())
    for number, gradient in enumerate(gradients(3)):
        half.step(everything(), gradient, LR, number, torch.tensor(0.5))
        other.step(everything(), gradient * 0.5, LR, number, ONE)
    assert torch.equal(half.held.rows, other.held.rows)


@pytest.mark.parametrize("kind", ["adamw", "rowwise_adamw", "rowwise_adagrad"])
def test_state_comes_back_in_place_and_goes_on_to_the_bit(rows: Tensor, kind: str):
    """Also decay that was owed when it was saved, and stochastic rounding."""
    settings = {"optimizer": kind, "rows": "bf16"}
    if kind != "rowwise_adagrad":
        settings["moments"] = "bf16"
    first = optimizer(rows.bfloat16(), **settings)
    second = optimizer(torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16), **settings)
    view, steps = second.held.rows, gradients(5)
    run(first, steps[:2], PARTS[:2])
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for number in range(2, 5):
        index = torch.tensor(PARTS[number])
        for each in (first, second):
            each.step(index, steps[number][index], LR, number, ONE)
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    assert view.data_ptr() == second.held.rows.data_ptr()


def test_stochastic_rounding_is_unbiased_and_does_not_depend_on_the_sharding():
    """A step far below bfloat16's spacing moves rows by its size on average; two shards round as
    one."""
    count, width, step = 400, 64, 1e-4  # bfloat16 near 1: spaced by 2^-7
    start = torch.ones(count, width, dtype=torch.bfloat16)

    def moved(first: int, last: int) -> Tensor:
        optim = OptimConfig(weight_decay=0.0)
        head = HeadConfig(rows="bf16", optimizer="rowwise_adagrad")
        rows = start[first:last].clone()
        sparse = SparseRows(rows, head, optim, first_row=first, seed=1)
        gradient = torch.ones(last - first, width)
        for number in range(10):
            sparse.step(torch.arange(last - first), gradient, step, number, ONE)
        return sparse.held.rows

    whole = moved(0, count)
    assert torch.equal(torch.cat([moved(0, 150), moved(150, count)]), whole)
    travelled = sum(step / math.sqrt(t) for t in range(1, 11))
    deviation = 2.0**-8 * math.sqrt(travelled * 2.0**8 / (count * width))
    assert abs((1 - whole.float()).mean().item() - travelled) < 5 * deviation


def test_native_and_torch_round_the_same_way(rows: Tensor, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, apart from values that float32 puts on the other side of a boundary."""
    found = []
    wide = torch.randn(50, 96, generator=torch.Generator().manual_seed(4))
    for name in KERNELS:
        if name == "torch":
            monkeypatch.setattr("ovtrain.optim.sparse_rows.kernels_for", lambda _: TorchKernels())
        else:
            monkeypatch.undo()
        head = HeadConfig(rows="bf16", moments="bf16")
        sparse = SparseRows(wide.bfloat16(), head, OPTIM, first_row=2**33 + 5, seed=3)
        sparse.step(torch.arange(50), wide, LR, 0, ONE)
        found.append(sparse.held.rows.float())
    assert (found[0] != found[-1]).float().mean() < 1e-3


def test_mixing_is_a_permutation_that_scatters():
    x = mix32(torch.arange(1 << 16))
    assert len(x.unique()) == 1 << 16
    counts = torch.histc((x & 0xFFFF).float(), bins=16, min=0, max=2**16)
    assert (counts - 4096).abs().max() < 5 * 62
