"""A layout that is refused says which numbers would work."""

from dataclasses import replace

import pytest

from ovtrain.config.layout import check_layout, layout_problems, tensor_sizes
from ovtrain.config.model import PRESETS, ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.config.validate import problems
from ovtrain.schema.errors import ConfigError


def config(preset: str = "large", tensor: int = 1, **model: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(preset=preset, **model), run=RunConfig(steps=1, tensor_parallel=tensor)
    )


def test_heads_that_do_not_divide_are_refused_with_those_that_would():
    (problem,) = layout_problems(config("base", 8), 8, {})
    assert problem == (
        "run.tensor_parallel=8 does not divide model.heads=12 and model.mlp=3072; "
        "allowed for this model: 1, 2, 3, 4, 6, 12"
    )


def test_an_mlp_that_does_not_divide_is_refused():
    (problem,) = layout_problems(config("tiny", 3, mlp=770), 3, {})
    assert "allowed for this model: 1" in problem
    assert tensor_sizes(replace(PRESETS["tiny"], mlp=770)) == [1]


def test_ranks_that_do_not_divide_are_refused_with_those_that_would():
    (problem,) = layout_problems(config("large", 4), 6, {})
    assert problem == (
        "run.tensor_parallel=4 does not divide the 6 ranks; allowed on 6 ranks: 1, 2; "
        "or start 4 or 8 ranks"
    )
    assert "or start 4 ranks" in layout_problems(config("large", 4), 2, {})[0]


@pytest.mark.parametrize(
    ("tensor", "classes", "allowed"),
    [
        (1, 23, "allowed: 23 ranks at most"),
        (4, 23, "allowed: 20 ranks at most, a multiple of 4"),
        (8, 5, "allowed: 4 ranks at most, a multiple of 4, with run.tensor_parallel=4"),
        (8, 1, "allowed: 1 ranks at most, with run.tensor_parallel=1"),
    ],
)
def test_fewer_classes_than_ranks_are_refused(tensor: int, classes: int, allowed: str):
    (problem,) = layout_problems(config("large", tensor), 32, {"image": classes, "video": 400})
    assert problem.startswith(f"source image has {classes} classes for 32 ranks")
    assert problem.endswith(allowed)


def test_a_layout_that_works_has_no_problems():
    assert layout_problems(config("large", 8), 128, {"image": 128}) == []
    check_layout(config(), 1, {"image": 1})


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as refused:
        check_layout(config("large", 4), 6, {"image": 5})
    assert "run.tensor_parallel=4" in str(refused.value)
    assert "source image has 5 classes for 6 ranks" in str(refused.value)


def test_a_config_is_refused_before_any_rank_is_known():
    assert any("run.tensor_parallel=3" in problem for problem in problems(config("large", 3)))
    assert any("tensor_parallel=0" in problem for problem in problems(config("large", 0)))
