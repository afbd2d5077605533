"""Strict loading: every wrong key or value is a ConfigError that names it."""

from pathlib import Path

import pytest

from ovtrain.config.load import find_config, load, raise_problems, to_yaml
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text("data:\n  sources:\n  - {name: a, shards: x}\nrun: {steps: 3}\n")
    return file


def test_defaults_then_file_then_overrides(path: Path):
    config = load(TrainConfig, path, ["run.steps=5", "head.bias=null", "optim.lr=2e-4"])
    assert config.run.steps == 5
    assert config.data.sources[0].name == "a"
    assert (config.head.bias, config.optim.lr, config.head.sample_rate) == (None, 2e-4, 0.1)


def test_the_resolved_config_reads_back_to_itself(path: Path, tmp_path: Path):
    config = load(TrainConfig, path, ["data.augment.gain=0.1"])
    again = tmp_path / "b.yaml"
    again.write_text(to_yaml(config))
    assert load(TrainConfig, again) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("head.sample_rat=0.1", ["head.sample_rat=0.1", "did you mean sample_rate?", "scale"]),
        ("heed.scale=1", ["heed", "did you mean head?"]),
        ("head.sample_rate=abc", ["head.sample_rate", "abc"]),
        ("head=3", ["head=3", "HeadConfig"]),
        ("data.sources=[{nam: x}]", ["nam", "name"]),
        ("data.sources.0.weight=1", ["data.sources.0.weight=1", "only as a whole"]),
        ("run.steps", ["run.steps", "allowed: key=value"]),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(
    path: Path, override: str, parts: list[str]
):
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, path, [override])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["run: [", "run: {step: 3}", "- a\n- b\n", "run: {steps: many}"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.yaml"):
        load(TrainConfig, path)


def test_a_missing_file_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no such config file; allowed: .*pretrain/debug-stage1"):
        find_config("pretrain/debug-stage9")
    assert find_config("pretrain/debug-stage1").is_file()


def test_problems_are_reported_together():
    raise_problems("x", [])
    with pytest.raises(ConfigError, match=r"^x: one$"):
        raise_problems("x", ["one"])
    with pytest.raises(ConfigError, match=r"(?s)one.*two"):
        raise_problems("x", ["one", "two"])


def test_a_sources_head_differs_from_the_others_where_it_says(path: Path, tmp_path: Path):
    config = load(TrainConfig, path, ["head.scale=8", "heads.a.sample_rate=0.2"])
    assert (config.head_of("a").sample_rate, config.head_of("a").scale) == (0.2, 8.0)
    assert config.head_of("b") == config.head
    again = tmp_path / "b.yaml"
    again.write_text(to_yaml(config))
    assert load(TrainConfig, again) == config


@pytest.mark.parametrize("given", ["{rate: 1}", "{sample_rate: many}", "3", "[1]", "null"])
def test_a_wrong_head_of_a_source_is_named(path: Path, given: str):
    config = load(TrainConfig, path, [f"heads={{a: {given}}}"])
    with pytest.raises(ConfigError, match=r"heads\.a"):
        config.head_of("a")
