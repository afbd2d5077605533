"""The SDPA backend against a masked dense softmax in float64; the choice of a backend."""

import pytest
import torch
from torch import Tensor

from ovtrain.ops.varlen_attention import Sequences, choose_backend, varlen_attention
from ovtrain.schema.errors import ConfigError


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def dense(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """One big softmax; pairs of different sequences are masked."""
    rows = torch.repeat_interleave(torch.arange(len(cu_q) - 1), cu_q.diff())
    columns = torch.repeat_interleave(torch.arange(len(cu_k) - 1), cu_k.diff())
    logits = torch.einsum("nhd,mhd->hnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    logits = logits.masked_fill(rows[:, None] != columns, float("-inf"))
    return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v.double())


@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [
        ([4, 4, 4], [4, 4, 4]),
        ([1, 5, 5, 2, 2, 2, 7], [1, 5, 5, 2, 2, 2, 7]),
        ([1, 1, 1, 1], [3, 3, 9, 1]),  # pooling: one query per sequence
        ([2, 2, 3], [5, 1, 1]),
        ([6], [6]),
    ],
)
def test_runs_of_unequal_lengths_equal_a_masked_dense_softmax(lengths_q, lengths_k):
    """Float32 softmax of about ten logits: 1e-5 forward, the same for gradients of unit size."""
    generator = torch.Generator().manual_seed(0)
    cu_q, cu_k = bounds(lengths_q), bounds(lengths_k)
    q, k, v = (
        torch.randn(int(cu[-1]), 2, 16, generator=generator).requires_grad_()
        for cu in (cu_q, cu_k, cu_k)
    )
    weight = torch.randn(q.shape, generator=generator)
    rows = (Sequences(cu_q, max(lengths_q)), Sequences(cu_k, max(lengths_k)))
    found = varlen_attention(q, k, v, *rows)
    gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    expected = dense(q, k, v, cu_q, cu_k)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_auto_takes_the_reference_on_a_cpu():
    assert choose_backend("auto", "cpu", torch.float32, 64) == "sdpa"
    assert choose_backend("sdpa", "cpu", torch.bfloat16, 64) == "sdpa"


@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_a_backend_that_cannot_run_here_is_refused_by_name(name: str):
    with pytest.raises(ConfigError, match=f"model.attention={name}: cannot run on cpu .*use auto"):
        choose_backend(name, "cpu", torch.float32, 64)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_gpu_backends_get_flash_attentions_own_arguments(
    monkeypatch: pytest.MonkeyPatch, backend: str, deterministic: bool
):
    """No GPU here: a stand-in with their signature sees what they would be called with."""
    seen: dict[str, object] = {}

    def stand_in(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert max_seqlen_q >= cu_seqlens_q.diff().max()
        assert max_seqlen_k >= cu_seqlens_k.diff().max()
        seen.update(options)
        return dense(q, k, v, cu_seqlens_q, cu_seqlens_k).to(q.dtype)

    name = {"varlen": "varlen_attn", "flash": "flash_attn_varlen_func"}[backend]
    monkeypatch.setattr(f"ovtrain.ops.varlen_attention.{name}", stand_in)
    generator = torch.Generator().manual_seed(0)
    rows_q, rows_k = Sequences(bounds([1, 1, 1]), 1), Sequences(bounds([4, 2, 3]), 5)
    q = torch.randn(3, 2, 16, generator=generator)
    k, v = (torch.randn(9, 2, 16, generator=generator) for _ in range(2))
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = varlen_attention(q, k, v, rows_q, rows_k, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, varlen_attention(q, k, v, rows_q, rows_k))
    assert seen == ({"deterministic": deterministic} if backend == "flash" else {})


def test_empty_sequences_are_passed_over():
    q = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0))
    with_empty, without = Sequences(bounds([0, 2, 0, 0, 3, 0]), 3), Sequences(bounds([2, 3]), 3)
    found = varlen_attention(q, q, q, with_empty, with_empty)
    assert torch.equal(found, varlen_attention(q, q, q, without, without))
