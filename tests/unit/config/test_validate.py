"""Rules of the sections and between them; each message names key, finding, rule and remedy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovtrain.config.data import AugmentConfig, SourceConfig, ViewShares
from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import problems, validate
from ovtrain.schema.errors import ConfigError

SOURCES = [SourceConfig("video", "v"), SourceConfig("image", "i")]


def config(**sections: dict[str, Any]) -> TrainConfig:
    made = TrainConfig()
    base = {"data": {"sources": SOURCES}, "run": {"steps": 10}}
    for name in ("model", "data", "head", "optim", "run"):
        changes = base.get(name, {}) | sections.get(name, {})
        made = replace(made, **{name: replace(getattr(made, name), **changes)})
    return replace(made, heads=sections.get("heads", {}))


def test_the_defaults_need_only_sources_and_a_length():
    assert problems(config()) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"preset": "colossal"}}, "model.preset=colossal; allowed: "),
        ({"model": {"rope_style": "spin"}}, "allowed: rotary, released"),
        ({"head": {"sample_rate": 0.0}}, "head.sample_rate=0.0; allowed: above 0 to 1"),
        ({"head": {"reduction": "sum"}}, "allowed: null, positive, sample"),
        ({"head": {"bias": 1.0, "loss": "mlcd"}}, "head.bias=1.0 does not enter head.loss=mlcd"),
        ({"head": {"margin": 0.1}}, "head.margin=0.1 does not enter head.loss=logistic"),
        (
            {"head": {"reduction": "positive", "loss": "mlcd"}},
            "allowed with head.loss=mlcd: sample",
        ),
        (
            {"head": {"optimizer": "rowwise_adagrad", "moments": "bf16"}},
            "head.moments has no effect",
        ),
        ({"head": {"optimizer": "sgd"}}, "allowed: adamw, rowwise_adamw, rowwise_adagrad"),
        ({"heads": {"audio": {}}}, "heads.audio is no source; allowed: "),
        ({"heads": {"video": {"rate": 0.2}}}, "unknown key 'rate'"),
        ({"heads": {"video": {"sample_rate": 2.0}}}, "heads.video.sample_rate=2.0"),
        (
            {"head": {"init": "centroids"}, "data": {"sources": [SourceConfig("video", "v", "l")]}},
            "head.init=centroids needs centroids",
        ),
        (
            {"data": {"sources": [SourceConfig("a", "v", "l", centroids="c")]}},
            "source a: centroids has no effect without",
        ),
        (
            {"heads": {"video": {"sample_rate": 0.2}}},
            "heads.video has no effect: the source",
        ),
        ({"heads": {"video": 3}}, "heads.video: is 3; allowed: {key: value, ...}"),
        ({"optim": {"head_lr": 10.0}}, "must be below 1: a step would turn weights round"),
        ({"optim": {"lr": -1.0}}, "optim.lr=-1.0"),
        ({"optim": {"warmup": 1.5}}, "optim.warmup=1.5"),
        ({"run": {"samples": 5}}, "give exactly one"),
        ({"run": {"steps": 0}}, "give exactly one"),
        ({"run": {"precision": "fp16"}}, "allowed: fp32, bf16"),
        ({"run": {"zero_stage": 0}}, "run.zero_stage=0; allowed: 1, 2, 3"),
        ({"data": {"sources": []}}, "data.sources is empty"),
        ({"data": {"sources": [SOURCES[0]] * 2}}, "each needs a name of its own"),
        ({"data": {"views": ViewShares(0.5, 0.5, 0.1)}}, "multiples of 1/16 that sum to 1"),
        ({"data": {"views": ViewShares(0.33, 0.33, 0.34)}}, "multiples of 1/16"),
        ({"data": {"decoder": "magic"}}, "allowed: pyav, dali"),
        (
            {"data": {"augment": AugmentConfig(crop_area=[0.5, 1.5])}},
            "two rising shares above 0 to 1",
        ),
        (
            {"data": {"augment": AugmentConfig(crop_area=[1.0])}},
            "crop_area=[1.0]; allowed: [] or two",
        ),
        (
            {"data": {"augment": AugmentConfig(crop_aspect=[2.0, 0.5])}},
            "two rising positive numbers",
        ),
        (
            {"data": {"augment": AugmentConfig(contrast=1.0)}},
            "augment.contrast=1.0; allowed: 0 to below 1",
        ),
        ({"data": {"size": 225}}, "data.size=225 must be a multiple of model.patch=14; use 224 or"),
        ({"data": {"token_budget": 2000}}, "data.token_budget=2000"),
        (
            {"model": {"preset": "base", "heads": 7}},
            "model.heads=7 with model.width=768; allowed: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 (",
        ),
        ({"model": {"pooling": False}}, "model.pooling=false; allowed in training: true"),
        ({"data": {"clip_frames": 65}}, "exceeds model.rope_frames=64"),
        ({"run": {"global_batch": 1}}, "leaves no sample for source"),
        ({"data": {"sources": [SourceConfig("../x", "v")]}}, "source name ../x; allowed: letters"),
        ({"run": {"micro_batch": 1}}, "run.micro_batch=1 is below the number of sources (2)"),
        ({"run": {"micro_batch": -1}}, "run.micro_batch=-1; allowed: 0 or more"),
        ({"run": {"steps": -5, "samples": 9}}, "run.steps=-5; allowed: 0 or more"),
        ({"optim": {"lr": float("nan")}}, "optim.lr=nan; allowed: a positive number"),
        ({"optim": {"beta1": 1.5}}, "optim.beta1=1.5; allowed: 0 to below 1"),
        ({"optim": {"weight_decay": -1.0}}, "optim.weight_decay=-1.0; allowed: 0 or more"),
        ({"optim": {"head_lr": 0.0}}, "optim.head_lr=0.0; allowed: a positive number"),
        ({"head": {"bias": float("inf")}}, "head.bias=inf; allowed: a finite number"),
        ({"data": {"max_bad_in_a_row": 0}}, "data.max_bad_in_a_row=0"),
    ],
)
def test_each_rule_names_its_key(sections: dict[str, Any], message: str):
    found = problems(config(**sections))
    assert any(message in text for text in found), found


def test_the_budget_rule_says_which_budget_fits():
    (text,) = problems(config(data={"token_budget": 2000}))
    assert "use 2048" in text
    codec_only = {"token_budget": 2000, "views": ViewShares(1.0, 0.0, 0.0)}
    assert problems(config(data=codec_only)) == []


def test_all_problems_arrive_in_one_error():
    wrong = config(model={"preset": "x"}, head={"scale": 0.0}, optim={"schedule": "y"})
    with pytest.raises(ConfigError) as caught:
        validate(wrong, "my.yaml")
    for part in ("my.yaml", "model.preset=x", "head.scale=0.0", "optim.schedule=y"):
        assert part in str(caught.value)


def test_a_length_in_samples_is_rounded_up_to_steps():
    assert config(run={"steps": 0, "samples": 1000, "global_batch": 256}).run.total_steps == 4


@pytest.mark.parametrize("path", sorted(find_config("demo/stage1").parents[1].glob("pretrain/*")))
def test_every_shipped_recipe_is_valid(path: Path):
    found = problems(load(TrainConfig, path))
    assert [text for text in found if "sources" not in text] == []


def sized(name: str, size: int) -> SourceConfig:
    return SourceConfig(name, name, size=size)


def test_the_budget_has_to_fit_the_side_of_one_source():
    """Which of them are videos stands in their shards."""
    beside = {"sources": [sized("video", 0), sized("image", 448)]}
    assert problems(config(data=beside)) == []
    assert problems(config(data=beside | {"size": 448, "sources": [sized("video", 224)]})) == []
    found = problems(config(data=beside | {"token_budget": 2000}))
    assert [text.split("use ")[1] for text in found] == ["2048", "8192"]


def test_a_sources_side_is_a_multiple_of_the_patch():
    (text,) = problems(config(data={"sources": [sized("video", 0), sized("image", 450)]}))
    assert text == "source image: size=450 must be a multiple of model.patch=14; use 448 or 462"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SourceConfig("a", "v", size=-1), "source a: size=-1; allowed: 0 or more"),
        (SourceConfig("a", "v", "l", classes=-1), "source a: classes=-1; allowed: 0 or more"),
        (SourceConfig("a", "v", classes=9), "source a: classes has no effect without labels"),
    ],
)
def test_each_rule_of_a_source_names_its_key(source: SourceConfig, message: str):
    assert message in problems(config(data={"sources": [source]}))
