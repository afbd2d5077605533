"""Generated clips that are made once for all tests of the room."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.prepare import prepare
from data_pipelines.synthetic import SyntheticConfig, generate
from ovtrain.config.prepare import PrepareConfig

SYNTHETIC = SyntheticConfig(train_clips=4, heldout_clips=2, frames=32, preset="ultrafast")
PREPARE = PrepareConfig(size=112, frames=32, samples_per_shard=3, workers=1, preset="ultrafast")


def write_h264(
    path: Path, frames: int, width: int = 160, height: int = 96, rotation: int = 0
) -> None:
    """A video whose frame t is grey level 2t left of the centre and 250 - 2t right of it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for t in range(frames):
            picture = np.full((height, width, 3), 2 * t, np.uint8)
            picture[:, width // 2 :] = 250 - 2 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/, heldout/ and classes.json."""
    out = tmp_path_factory.mktemp("synthetic")
    generate(SYNTHETIC, out, workers=1)
    return out


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """Output folder of ``prepare`` over the train clips, one H.264 video and three bad files."""
    videos = tmp_path_factory.mktemp("videos")
    for path in sorted((clips / "train").glob("*.mp4")):
        (videos / path.name).write_bytes(path.read_bytes())
    write_h264(videos / "street view.v2.mp4", frames=40)
    write_h264(videos / "short.mp4", frames=5)
    (videos / "noise.mp4").write_bytes(bytes(range(256)) * 16)
    (videos / "notes.txt").write_text("not a video")
    out = tmp_path_factory.mktemp("prepared")
    assert prepare(videos, out, PREPARE)
    (out / "videos").write_text(str(videos))
    return out
