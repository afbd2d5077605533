"""Fixtures that rooms share: one tiny set of shards and labels per test session."""

from pathlib import Path

import pytest

from tests.helpers.training import write_setup


@pytest.fixture(scope="session")
def setup_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips and 24 pictures of 28 x 28 pixels, with labels. Read only."""
    folder = tmp_path_factory.mktemp("setup")
    write_setup(folder)
    return folder
