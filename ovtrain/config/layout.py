"""Whether ranks can be laid out as asked for, and which numbers would work. Torch-free: a training
process and the preflight before it decide by the same rules.

W ranks = data ranks x run.tensor_parallel; class rows are divided over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ovtrain.config.load import raise_problems
from ovtrain.config.model import ModelSize
from ovtrain.config.train import TrainConfig

KEY = "run.tensor_parallel"


def data_ranks(config: TrainConfig, world: int) -> int:
    """Ranks that samples are dealt to, of ``world``."""
    return world // config.run.tensor_parallel


def tensor_sizes(size: ModelSize) -> list[int]:
    """Numbers of tensor ranks that divide the heads and the MLP of an encoder."""
    return [n for n in range(1, size.heads + 1) if size.heads % n == 0 and size.mlp % n == 0]


def model_problems(config: TrainConfig) -> list[str]:
    """What the model rules out, whatever the number of ranks."""
    size, tensor = config.model.size, config.run.tensor_parallel
    found: list[str] = []
    if tensor < 1:  # the section's own rules tell of it
        return found
    if tensor not in tensor_sizes(size):
        shown = ", ".join(map(str, tensor_sizes(size)))
        found.append(
            f"{KEY}={tensor} does not divide model.heads={size.heads} and model.mlp={size.mlp}; "
            f"allowed for this model: {shown}"
        )
    return found


def layout_problems(config: TrainConfig, world: int, classes: Mapping[str, int]) -> list[str]:
    """On ``world`` ranks; ``classes`` of each source with labels."""
    found = model_problems(config)
    if found:
        return found
    tensor = config.run.tensor_parallel
    if world % tensor:
        fitting = [n for n in tensor_sizes(config.model.size) if world % n == 0]
        below = world // tensor * tensor
        ranks = " or ".join(str(n) for n in (below, below + tensor) if n)
        found.append(
            f"{KEY}={tensor} does not divide the {world} ranks; allowed on {world} ranks: "
            f"{', '.join(map(str, fitting))}; or start {ranks} ranks"
        )
    for source, count in classes.items():
        if count < world:
            found.append(
                f"source {source} has {count} classes for {world} ranks, each of which holds some; "
                f"allowed: {_most_ranks(config.model.size, tensor, count)}"
            )
    return found


def _most_ranks(size: ModelSize, tensor: int, count: int) -> str:
    """Up to ``count`` ranks that can be laid out, with fewer tensor ranks where they are more."""
    own = max(n for n in tensor_sizes(size) if n <= min(tensor, count))
    text = f"{count // own * own} ranks at most"
    if own > 1:
        text += f", a multiple of {own}"
    return text if own == tensor else f"{text}, with {KEY}={own}"


def check_layout(config: TrainConfig, world: int, classes: Mapping[str, int]) -> None:
    """Raises ConfigError that names all problems of the layout."""
    raise_problems("layout", layout_problems(config, world, classes))
