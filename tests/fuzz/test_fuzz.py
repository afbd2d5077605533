"""A short run of the fuzzing campaign (run.py), and proof that it would notice."""

from pathlib import Path

import pytest

from tests.fuzz.run import Finding, build, campaign, write_streams

FEW = ("b-pyramid", "slices", "weighted", "wpp", "lossless", "open gop", "scaling list")


@pytest.mark.full
def test_damaged_streams_do_no_harm(tmp_path: Path):
    streams = write_streams(tmp_path, FEW)
    program = build(tmp_path)
    tally = campaign(program, streams, 2000)
    assert tally.inputs == 2000
    assert tally.pictures > 10_000
    assert 1000 < tally.damaged < tally.pictures
    # A stream of no bytes has the program divide by zero, which the sanitizer must say.
    (tmp_path / "empty.h265").write_bytes(b"")
    with pytest.raises(Finding, match=r"seed 1: [^$]*division by zero"):
        campaign(program, [tmp_path / "empty.h265"], 6)
