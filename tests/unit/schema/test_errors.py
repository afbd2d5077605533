"""Typed errors say where, what was found, what is allowed and what to do."""

import pickle

import pytest

from ovtrain.schema.errors import CheckpointError, ConfigError, MediaError, OvtrainError


def test_the_message_holds_all_parts_in_order():
    error = ConfigError("head.scale", "-1", allowed="above 0", fix="use 10")
    assert str(error) == "head.scale: -1; allowed: above 0; use 10"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MediaError("a.mp4"), "a.mp4"),
        (MediaError("a.mp4", "cut short"), "a.mp4: cut short"),
        (MediaError("a.mp4", fix="drop it"), "a.mp4; drop it"),
    ],
)
def test_absent_parts_are_left_out(error: OvtrainError, message: str):
    assert str(error) == message


def test_errors_survive_a_worker_process():
    error = CheckpointError("dir", "damaged", allowed="whole", fix="copy it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CheckpointError
    assert (str(copy), copy.where, copy.fix) == (str(error), "dir", "copy it")


def test_every_typed_error_is_a_value_error():
    assert issubclass(OvtrainError, ValueError)
