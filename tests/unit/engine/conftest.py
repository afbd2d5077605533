"""Trainers take over signal handlers: each test gives them back."""

from collections.abc import Iterator

import pytest

from tests.helpers.training import keep_signals


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    with keep_signals():
        yield
