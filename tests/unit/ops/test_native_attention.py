"""Our CPU kernels against a softmax in float64, measured by the errors of torch's kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ovtrain.ops.varlen_attention import Sequences, choose_backend, varlen_attention

try:
    from ovtrain.ops.native_attention import native_attention
except ImportError:
    pytest.skip("no AVX-512 products of bfloat16 here", allow_module_level=True)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def tokens(count: int, heads: int, d: int, seed: int = 0) -> Tensor:
    """(count, heads, 3, d) bfloat16: q, k and v lie as the fused projection leaves them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, heads, 3, d, generator=generator).bfloat16()


def torchs(q: Tensor, k: Tensor, v: Tensor, cu: Tensor) -> Tensor:
    """Sequence by sequence."""
    parts = zip(*(x.split(cu.diff().tolist()) for x in (q, k, v)), strict=True)
    found = [scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)) for part in parts]
    return torch.cat([x.transpose(0, 1) for x in found])


def with_gradients(attend: Attend, qkv: Tensor, towards: Tensor, cu: Tensor) -> list[Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(2))
    out = attend(q, k, v, cu)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), towards)]


@pytest.mark.parametrize(
    ("lengths", "heads", "d"),
    [
        ([1, 7, 64, 65, 47, 48, 49, 2], 2, 64),  # around panels of 64 and blocks of 48
        ([300, 255, 513], 1, 64),  # several blocks of 256
        ([33, 90], 2, 32),
        ([70], 1, 96),
        ([40, 0, 5], 1, 128),
    ],
)
def test_outputs_and_gradients_are_about_as_exact_as_torchs(lengths: list[int], heads: int, d: int):
    """Torch keeps float32 weights where sequences are short, we round them to bfloat16."""
    qkv, cu = tokens(sum(lengths), heads, d), bounds(lengths)
    towards = tokens(sum(lengths), heads, d, seed=1)[:, :, 0]
    exact = with_gradients(torchs, qkv.double(), towards.double(), cu)
    ours = with_gradients(native_attention, qkv, towards, cu)
    theirs = with_gradients(torchs, qkv, towards, cu)
    for found, wanted, reference in zip(ours, exact, theirs, strict=True):
        allowed = 1.6 * float((reference - wanted).square().mean().sqrt())
        assert float((found - wanted).square().mean().sqrt()) < allowed


def test_large_scores_neither_overflow_nor_lose_the_largest():
    """The largest score lies in a later block of keys: what was summed before must shrink."""
    qkv = tokens(600, 1, 32)
    qkv[:, :, 0] = 50
    qkv[:, :, 1] = 0
    qkv[555, :, 1] = 50
    q, k, v = qkv.unbind(2)
    found = native_attention(q, k, v, bounds([600]))
    assert torch.equal(found, qkv[555, :, 2].expand(600, -1, -1))


def test_a_sequence_sees_nothing_of_another():
    qkv, cu = tokens(100, 2, 64), bounds([30, 70])
    q, k, v = qkv.unbind(2)
    before = native_attention(q, k, v, cu)
    qkv[30:] = float("nan")
    after = native_attention(q, k, v, cu)
    assert torch.equal(before[:30], after[:30])
    assert after[30:].isnan().all()


def test_the_number_of_threads_changes_no_bit():
    qkv, cu = tokens(200, 3, 64), bounds([120, 80])
    towards, before = qkv[:, :, 1].contiguous(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(with_gradients(native_attention, qkv, towards, cu))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("wrong", [[0, 9], [1, 10], [0, 11], [0, 7, 5, 10]])
def test_bounds_that_do_not_fit_are_refused(wrong: list[int]):
    q = tokens(10, 1, 32)[:, :, 0]
    with pytest.raises(ValueError, match="bounds do not fit"):
        native_attention(q, q, q, torch.tensor(wrong, dtype=torch.int32))


@pytest.mark.parametrize("given", [torch.zeros(4, 1, 32), torch.zeros(4, 1, 48).bfloat16()])
def test_other_types_and_widths_are_refused(given: Tensor):
    with pytest.raises(ValueError, match=r"q must be bfloat16 .*a multiple of 32"):
        native_attention(given, given, given, bounds([4]))


def test_auto_takes_it_for_bfloat16_on_a_cpu_and_leaves_pooling_to_torch():
    assert choose_backend("auto", "cpu", torch.bfloat16, 64) == "native"
    assert choose_backend("auto", "cpu", torch.float16, 64) == "sdpa"
    assert choose_backend("auto", "cpu", torch.bfloat16, 104) == "sdpa"
    q, k, v = tokens(50, 1, 32).unbind(2)
    rows = Sequences(bounds([20, 30]), 30)
    whole = varlen_attention(q, k, v, rows, rows, "native")
    assert torch.equal(whole, native_attention(q, k, v, rows.bounds))
    probes = varlen_attention(q[:2], k, v, rows.one_each(), rows, "native")
    assert torch.equal(probes, varlen_attention(q[:2], k, v, rows.one_each(), rows, "sdpa"))
