"""The peers that the head is timed against compute what they claim to."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from tests.helpers.benchmark_modules import benchmark_module

PeerHead = benchmark_module("peer_heads").PeerHead
ROWS, WIDTH, SAMPLES, FIRST = 200, 192, 12, 1000


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(ROWS, generator=generator)[:10] for _ in range(SAMPLES)]
    return torch.randn(SAMPLES, WIDTH, generator=generator), torch.stack(rows) + FIRST


def stepped(head: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient of the embeddings and of the weight, weight before the step."""
    found: list[Tensor] = []
    hook = head.weight.register_post_accumulate_grad_hook(lambda p: found.append(p.grad.clone()))
    before = head.weight.detach().clone()
    loss, towards = head.step(*batch)
    hook.remove()
    return loss, towards, found[0], before


def cosface(embeddings: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The margin softmax's loss, differently written."""
    cosines = normalize(embeddings) @ normalize(weight).T
    own = one_hot(target, len(weight)).bool()
    cosines = cosines.masked_fill(~own & (cosines > 0.75), 0.0)
    return cross_entropy(64 * (cosines - 0.3 * own), target)


def test_one_softmax_over_all_rows_is_cosface(batch):
    head = PeerHead(ROWS, WIDTH, FIRST, softmaxes=1, rate=1.0, bf16=False, seed=1)
    with torch.no_grad():
        head.weight[(batch[1][0, 0] - FIRST + 7) % ROWS] = batch[0][0]  # a filtered negative
    loss, towards, gradient, before = stepped(head, batch)
    z, w = batch[0].clone().requires_grad_(), before.requires_grad_()
    wanted = cosface(z, w, batch[1][:, 0] - FIRST)
    wanted.backward()
    for a, b in ((loss, wanted.detach()), (towards, z.grad), (gradient, w.grad)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_eight_softmaxes_are_summed_and_their_mean_is_reported(batch, rate: float):
    head = PeerHead(ROWS, WIDTH, FIRST, softmaxes=8, rate=rate, bf16=False, seed=3)
    seen, draw = [], head.draw
    head.draw = lambda column: seen.append((column, draw(column))) or seen[-1][1]
    loss, towards, gradient, before = stepped(head, batch)
    z, w = batch[0].clone().requires_grad_(), before.requires_grad_()
    losses = []
    for column, drawn in seen:
        index = torch.arange(ROWS) if drawn.index is None else drawn.index
        assert len(index) == int(rate * ROWS)
        losses.append(cosface(z, w[index], torch.searchsorted(index, column - FIRST)))
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(towards, z.grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, w.grad, atol=2e-5, rtol=1e-4)
    if rate < 1:
        assert len({tuple(drawn.index.tolist()) for _, drawn in seen}) == 8


def test_the_optimizer_moves_every_row(batch):
    head = PeerHead(ROWS, WIDTH, FIRST, softmaxes=1, rate=0.1, bf16=True)
    before = head.weight.detach().clone()
    head.step(*batch)
    assert (head.weight.detach() != before).any(1).all()
