"""The data contract: the documented bytes are those that are written, and others can read them."""

import gc
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipelines.shards.writer import write_source
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardManifest
from ovtrain.schema.sample import SampleMeta
from tests.helpers.shards import geometry

CONTRACT = Path(__file__).parents[3] / "docs/data_format.md"


def cat(folder: Path) -> ShardManifest:
    """The shard of the document."""
    meta = SampleMeta("cat-0", "image", "image", 1, 14, 14, 0.0, "", "cat.jpg", 0)
    members = {"jpg": b"\xff\xd8JPEG\xff\xd9", "json": meta.to_json()}
    return write_source(folder, geometry("image", 1, 14), [("cat-0", members)], 1)


def dump(raw: bytes) -> str:
    """Sixteen bytes a line, runs of zeros as a star."""
    lines: list[str] = []
    for start in range(0, len(raw), 16):
        row = raw[start : start + 16]
        if any(row):
            shown = "".join(chr(c) if 32 <= c < 127 else "." for c in row)
            lines.append(f"{start:05x}  {row.hex(' ')}  {shown}".rstrip())
        elif lines[-1] != "*":
            lines.append("*")
    return "\n".join(lines) + "\n"


def test_the_documented_bytes_are_those_that_are_written(tmp_path: Path):
    cat(tmp_path)
    text = CONTRACT.read_text()
    blocks = re.findall(r"```\n(00000  .*?)```", text, re.DOTALL)
    assert blocks == [dump((tmp_path / "image-000000.tar").read_bytes())]
    index = ShardIndex.read(tmp_path / "image-000000.npz")
    assert index.crcs is not None
    shown = (index.keys, index.offsets.tolist(), index.sizes.tolist(), index.crcs.tolist())
    assert "keys {}   offsets {}   sizes {}   crcs {}".format(*shown) in text


def read(tars: list[str]) -> dict[str, dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        found = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False)}
        gc.collect()
    return found


def test_webdataset_reads_a_shard(prepared: Path):
    for kind in ("video", "image"):
        found = read(sorted(str(path) for path in (prepared / kind).glob("*.tar")))
        assert len(found) == ShardManifest.read(prepared / kind).samples
        for key, sample in found.items():
            assert json.loads(sample["json"])["key"] == key
            if kind == "image":
                assert Image.open(io.BytesIO(sample["jpg"])).size == (112, 112)
            else:
                assert np.load(io.BytesIO(sample["energy.npy"])).shape == (32, 8, 8)


def test_another_version_is_refused(tmp_path: Path):
    cat(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ManifestError, match="manifest version 2; allowed: 1"):
        ShardManifest.read(tmp_path)
