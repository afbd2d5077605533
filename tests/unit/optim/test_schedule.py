"""Learning rates in closed form, and which parameters decay."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ovtrain.config.model import ModelConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups
from ovtrain.optim.schedule import learning_rate

CONFIG = OptimConfig(lr=1.0, warmup=0.1, final_lr=0.1)


def rates(config: OptimConfig, steps: int = 100) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str):
    found = rates(replace(CONFIG, schedule=schedule))
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(1.0)
    assert max(found) == pytest.approx(1.0)


def test_cosine_and_linear_fall_to_the_final_rate():
    for schedule, middle in (("cosine", 0.55), ("linear", 0.55)):
        found = rates(replace(CONFIG, schedule=schedule))
        assert found[55] == pytest.approx(middle)
        assert found[-1] == pytest.approx(0.1, abs=0.02)
        assert all(a >= b for a, b in pairwise(found[10:]))


def test_the_first_step_already_learns_and_no_warm_up_starts_at_the_peak():
    assert rates(CONFIG)[0] > 0
    assert rates(replace(CONFIG, warmup=0.0))[0] == 1.0


def test_the_heads_peak_scales_the_same_shape():
    halves = [learning_rate(replace(CONFIG, final_lr=0.0), s, 50, 0.5) for s in range(50)]
    whole = [learning_rate(replace(CONFIG, final_lr=0.0), s, 50) for s in range(50)]
    assert halves == pytest.approx([rate / 2 for rate in whole])


def test_matrices_decay_and_nothing_else():
    with torch.device("meta"):
        encoder = Encoder(ModelConfig(preset="tiny"))
    names = {id(p): name for name, p in encoder.named_parameters()}
    decayed, plain = ({names[id(p)] for p in g["params"]} for g in param_groups(encoder, 0.2))
    assert len(decayed) + len(plain) == len(names)
    assert "head.probe" in plain
    assert all(name.endswith("weight") for name in decayed)
    assert all("norm" in name or name.endswith(("bias", "probe")) for name in plain)
    assert not any("norm" in name for name in decayed)
