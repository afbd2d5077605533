"""Remedies that messages name must exist."""

import re
from pathlib import Path

import click
import pytest

from launch.cli import COMMANDS, cli
from tests.helpers.world import ROOT

NAMED = re.compile(r"`ovtrain ([a-z]+)(?: ([a-z]+))?`")


def named_commands() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for room in ("ovtrain", "data_pipelines", "clustering", "launch"):
        for path in (ROOT / room).rglob("*.py"):
            found |= set(NAMED.findall(Path(path).read_text()))
    return found


@pytest.mark.parametrize("name", sorted(named_commands()), ids=" ".join)
def test_every_command_that_a_message_names_exists(name: tuple[str, str]):
    command, part = name
    assert command in COMMANDS
    if part:
        group = cli.get_command(click.Context(cli), command)
        assert isinstance(group, click.Group)
        assert part in group.commands
