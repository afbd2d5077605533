"""What is not finite stops a run before the update, by name, or costs one step. On several ranks
and under ZeRO: tests/parity/test_guards.py."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ovtrain.checkpoint.restore import checkpoint_folder
from ovtrain.engine.build import Parts, build
from ovtrain.engine.gate import TokenGradients, UpdateGate
from ovtrain.engine.trainer import Trainer
from ovtrain.engine.verdict import NonFiniteLoss
from tests.helpers.training import metrics, poison, small, state_of, world

NAN = float("nan")


def test_a_shut_gate_stays_shut_or_opens_again():
    verdicts = {}
    for stay_shut in (True, False):
        gate = UpdateGate(torch.device("cpu"), stay_shut=stay_shut)
        found = [float(gate.judge(torch.tensor(norm))) for norm in (1.0, NAN, 1.0)]
        verdicts[stay_shut] = found
    assert verdicts == {True: [0, 1, 1], False: [0, 1, 0]}


@pytest.mark.parametrize("norm", [float("inf"), -float("inf"), NAN])
def test_a_refused_step_has_no_clip_factor(norm: float):
    gate = UpdateGate(torch.device("cpu"), stay_shut=True)
    gate.judge(torch.tensor(norm))
    assert gate.applied(torch.tensor(0.5)).isnan()


def test_an_unsound_sample_shuts_the_gate_though_the_norm_is_finite():
    gate = UpdateGate(torch.device("cpu"), stay_shut=False)
    gate.unsound = torch.tensor(1.0)
    assert float(gate.judge(torch.tensor(1.0))) == 1


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_token_gradients_name_the_samples(value: float):
    linear = nn.Linear(3, 4)
    watch = TokenGradients(linear)
    out = linear(torch.ones(7, 3))
    gradient = torch.ones(7, 4)
    gradient[2, 1] = gradient[6, 0] = value
    out.backward(gradient)
    cu_seqlens = torch.tensor([0, 2, 3, 6, 7], dtype=torch.int32)
    assert watch.sound(cu_seqlens).tolist() == [True, False, True, False]


@pytest.mark.parametrize("place", ["embedding", "loss gradient", "layer gradient"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_the_run_stops_before_the_update_and_names_the_sample(
    setup_folder, tmp_path, place: str, value: float
):
    config = small(setup_folder, tmp_path, log_every=3)
    parts = build(config, world())
    trainer = Trainer(config, parts, world())
    before, name = poison(parts, place, value, step=1, sample=2)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit()
    for part in ("step 2: 1 samples", f"rank 0, {name()}", "before the update", "lower optim.lr"):
        assert part in str(caught.value)
    assert_same(before(), state_of(parts))  # steps 2 and 3 were taken, neither was applied
    assert not (tmp_path / "checkpoints").exists()


def test_an_embedding_of_zero_has_no_direction(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path)
    parts = build(config, world())
    trainer = Trainer(config, parts, world())
    before, name = poison(parts, "embedding", 0.0, step=2, sample=0)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit()
    assert "step 3: 1 samples" in str(caught.value)
    assert name() in str(caught.value)
    assert_same(before(), state_of(parts))


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_class_rows_that_are_no_numbers_are_told_from_samples(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path)
    parts = build(config, world())
    parts.heads[0].head.rows.fill_(float("inf"))
    trainer = Trainer(config, parts, world())
    with pytest.raises(
        NonFiniteLoss, match=r"step 1: .*too: rank 0, class rows of video.*lower optim\.lr"
    ):
        trainer.fit()
    assert not (tmp_path / "checkpoints").exists()


def test_an_encoder_gradient_of_no_sample_names_the_encoder(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path)
    parts = build(config, world())
    parts.encoder.layernorm_pre.bias.register_hook(lambda gradient: gradient * NAN)
    trainer = Trainer(config, parts, world())
    with pytest.raises(NonFiniteLoss, match=r"step 1: not finite: the encoder .*grad_norm nan"):
        trainer.fit()


def test_what_was_saved_before_stays_the_newest(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path, log_every=100, checkpoint_every=2, keep=1)
    parts = build(config, world())
    trainer = Trainer(config, parts, world())
    poison(parts, "embedding", NAN, step=2, sample=1)
    with pytest.raises(NonFiniteLoss, match="step 3: "):
        trainer.fit()
    assert checkpoint_folder(tmp_path).name == "step-00000002"


def skipping(setup_folder: Path, out: Path, **run) -> tuple[Parts, Trainer]:
    overrides = ("guards.on_nonfinite=skip", "guards.max_skipped=2")
    config = small(setup_folder, out, *overrides, **run)
    parts = build(config, world())
    return parts, Trainer(config, parts, world())


@pytest.mark.parametrize("place", ["embedding", "layer gradient"])
def test_a_step_can_be_left_out_and_is_counted(setup_folder, tmp_path, caplog, place: str):
    parts, trainer = skipping(setup_folder, tmp_path)
    before, name = poison(parts, place, NAN, step=1, sample=3)
    after: list[dict[str, Tensor]] = []
    run = parts.step.run

    def watched(batch, step):
        result = run(batch, step)
        after.append(state_of(parts))
        return result

    parts.step.run = watched  # type: ignore[method-assign]
    with caplog.at_level("WARNING"):
        assert trainer.fit()
    assert_same(before(), after[1])
    changed = [key for key in after[1] if not torch.equal(after[1][key], after[2][key])]
    assert len(changed) > len(after[1]) / 2
    rows = metrics(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert [row["refused"] for row in rows] == [0, 1, 0, 0]
    (line,) = [r.getMessage() for r in caplog.records if "nothing was updated" in r.getMessage()]
    assert f"rank 0, {name()}" in line


def test_too_many_steps_left_out_in_a_row_stop_the_run(setup_folder, tmp_path):
    parts, trainer = skipping(setup_folder, tmp_path, steps=9)
    parts.heads[0].head.rows.fill_(NAN)
    with pytest.raises(NonFiniteLoss, match=r"step 2: "):
        trainer.fit()
