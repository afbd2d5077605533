"""Pre-norm transformer block: x + attn(LN(x)), x + mlp(LN(x)); exact GELU, no layer scale."""

from __future__ import annotations

from torch import Tensor, nn

from ovtrain.models.attention import Attention, Packing


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """``layer_norm`` or ``rms_norm``."""
    return nn.RMSNorm(width, eps=eps) if kind == "rms_norm" else nn.LayerNorm(width, eps=eps)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """``windowed``: its attention stays inside temporal windows where a packing has them."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        *,
        norm: str = "layer_norm",
        windowed: bool = False,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        self.windowed = windowed
        self.layer_norm1 = make_norm(norm, width, eps)
        self.self_attn = attention(width, heads)
        self.layer_norm2 = make_norm(norm, width, eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, D) -> (N, D)."""
        x = x + self.self_attn(self.layer_norm1(x), packing, self.windowed)
        return x + self.mlp(self.layer_norm2(x))
