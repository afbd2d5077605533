"""Row-sparse AdamW against torch's dense AdamW, row by row."""

import pytest
import torch
from torch import Tensor

from ovtrain.optim.sparse_rows import SparseRowAdamW

BETAS, EPS, DECAY, LR = (0.9, 0.99), 1e-8, 0.1, 1e-2


def optimizer(rows: Tensor) -> SparseRowAdamW:
    return SparseRowAdamW(rows, betas=BETAS, eps=EPS, weight_decay=DECAY)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def gradients(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


def dense(start: Tensor, steps: list[Tensor]) -> Tensor:
    """torch's AdamW on a parameter of its own."""
    parameter = torch.nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for gradient in steps:
        parameter.grad = gradient.clone()
        adamw.step()
    return parameter.detach()


def test_all_rows_every_step_is_adamw(rows: Tensor):
    steps, sparse = gradients(6, 7), optimizer(rows.clone())
    for gradient in steps:
        sparse.step(torch.arange(7), gradient, LR)
    torch.testing.assert_close(sparse.rows, dense(rows, steps), rtol=1e-6, atol=1e-7)


def test_each_row_is_as_if_trained_alone_on_its_own_steps(rows: Tensor):
    """Rows 0..6 take part in different steps; each equals AdamW on the gradients it saw."""
    taking_part = [[0, 1, 2], [2, 3], [0, 2, 5, 6], [2], [1, 2, 6]]
    sparse = optimizer(rows.clone())
    seen: dict[int, list[Tensor]] = {row: [] for row in range(7)}
    for index, gradient in zip(taking_part, gradients(5, 7), strict=True):
        sparse.step(torch.tensor(index), gradient[index], LR)
        for row in index:
            seen[row].append(gradient[row : row + 1])
    for row, steps in seen.items():
        expected = dense(rows[row : row + 1], steps)
        torch.testing.assert_close(sparse.rows[row : row + 1], expected, rtol=1e-6, atol=1e-7)
    assert sparse.steps.tolist() == [2, 2, 5, 1, 0, 1, 2]


def test_untouched_rows_keep_every_bit(rows: Tensor):
    sparse = optimizer(rows.clone())
    sparse.step(torch.tensor([3]), torch.ones(1, 5), LR)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(sparse.rows[others], rows[others])
    assert not sparse.first[others].any()


def test_state_comes_back_in_place(rows: Tensor):
    first, second = optimizer(rows.clone()), optimizer(torch.zeros(7, 5))
    view = second.rows
    steps = gradients(4, 7)
    for gradient in steps[:2]:
        first.step(torch.arange(7), gradient, LR)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for gradient in steps[2:]:
        for each in (first, second):
            each.step(torch.arange(7), gradient, LR)
    assert torch.equal(first.rows, second.rows)
    assert view.data_ptr() == second.rows.data_ptr()
