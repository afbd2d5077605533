"""Exported directories in transformers, of the installed version and of 4.x, against the public
architecture written out in float64 (``tests/helpers/reference.py``).

``make test`` puts transformers 4.x into .venv/transformers-4. Tolerance: float32 against float64
through three blocks, 1e-5 on layer-normed tokens of size 1.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovtrain.config.model import ModelConfig
from ovtrain.export import load_encoder, save_encoder
from ovtrain.export.public_format import to_public
from ovtrain.models.encoder import Encoder, build_encoder
from tests.helpers import reference

SCRIPT = Path(reference.__file__).with_name("public_calls.py")
OLD = Path(sys.prefix) / "transformers-4"
SIDE, FRAMES = 28, 64  # 2 x 2 patches
CONFIG = ModelConfig(width=128, depth=3, heads=2, mlp=256, init_std=0.1, rope_theta=500.0)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def grid_positions(flat: Tensor, rows: int, columns: int) -> Tensor:
    rest = flat % (rows * columns)
    return torch.stack([flat // (rows * columns), rest // columns, rest % columns], -1)


SPREAD = torch.cat([4 * t + torch.arange(4) for t in (0, 9, 18, 63)]).expand(2, -1)
"""Four whole frames of the virtual grid."""
SOME = torch.tensor([[0, 5, 6, 15], [1, 2, 3, 14]])
ORDER = torch.arange(16).flip(0).expand(2, -1)
PLACES = torch.stack([torch.arange(32).reshape(2, 16) % n for n in (60, 100, 7)], -1)
VIDEO = pixels(2, 3, 4, SIDE, SIDE)
CALLS: dict[str, dict[str, Any]] = {
    "image": {"pixel_values": pixels(2, 3, SIDE, 42)},
    "video": {"pixel_values": VIDEO, "output_hidden_states": True},
    "sparse": {"pixel_values": VIDEO, "visible_indices": SOME},
    "packed as guessed": {"pixel_values": VIDEO, "visible_indices": SPREAD},
    "dense as guessed": {"pixel_values": VIDEO, "visible_indices": torch.arange(16).expand(2, -1)},
    "packed": {"pixel_values": VIDEO, "visible_indices": ORDER, "packed": True},
    "chosen": {"pixel_values": VIDEO, "visible_indices": ORDER, "packed": False},
    "positions": {"pixel_values": VIDEO, "patch_positions": PLACES},
    "sparse positions": {
        "pixel_values": VIDEO,
        "visible_indices": SOME,
        "patch_positions": PLACES[:, :4],
    },
}
DENSE = torch.arange(16).expand(2, -1)
EXPECTED: dict[str, tuple[Tensor, Tensor]] = {
    "image": (torch.arange(6).expand(2, -1), grid_positions(torch.arange(6).expand(2, -1), 2, 3)),
    "video": (DENSE, grid_positions(DENSE, 2, 2)),
    "sparse": (SOME, grid_positions(SOME, 2, 2)),
    "packed as guessed": (DENSE, grid_positions(SPREAD, 2, 2)),
    "dense as guessed": (DENSE, grid_positions(DENSE, 2, 2)),
    "packed": (DENSE, grid_positions(ORDER, 2, 2)),
    "chosen": (ORDER, grid_positions(ORDER, 2, 2)),
    "positions": (DENSE, PLACES),
    "sparse positions": (SOME, PLACES[:, :4]),
}
"""Call -> which patches, and where they stand."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ambiguous": (
        {"pixel_values": VIDEO, "visible_indices": ORDER},
        "16 indices for as many patches, in another order; allowed: packed=True",
    ),
    "height": ({"pixel_values": pixels(1, 3, 225, 224)}, "picture height=225: .*resize it to 224"),
    "frames": (
        {"pixel_values": pixels(1, 3, 65, 14, 14)},
        "65 frames; allowed: 64 at most; sample them",
    ),
    "t": (
        {"pixel_values": pixels(1, 3, 14, 14), "patch_positions": torch.tensor([[[64, 0, 0]]])},
        "t=64 in row 0; allowed: 0 to 63",
    ),
    "index": (
        {"pixel_values": VIDEO, "visible_indices": torch.tensor([[0, 1], [2, 16]])},
        r"16 at \[1, 1\]; allowed: 0 to 15, the patches given",
    ),
    "place": (
        {"pixel_values": VIDEO, "visible_indices": SPREAD + 4},
        r"256 at \[0, 12\]; allowed: 0 to 255, the grid of 64 frames of 2 x 2 patches",
    ),
    "index of an image": (
        {"pixel_values": pixels(1, 3, SIDE, SIDE), "visible_indices": torch.tensor([[0, 1, 2, 4]])},
        r"4 at \[0, 3\]; allowed: 0 to 3, the grid of 1 frames of 2 x 2 patches",
    ),
    "mask": (
        {"pixel_values": VIDEO, "visible_indices": torch.ones(2, 16, dtype=torch.bool)},
        "visible_indices: a mask; allowed: indices; use mask.nonzero",
    ),
    "negative, packed": (
        {
            "pixel_values": VIDEO,
            "visible_indices": torch.full((2, 16), -1),
            "patch_positions": PLACES,
            "packed": True,
        },
        r"-1 at \[0, 0\]",
    ),
    "negative": (
        {"pixel_values": VIDEO, "visible_indices": torch.tensor([[0], [-1]])},
        r"-1 at \[1, 0\]",
    ),
    "too few": (
        {"pixel_values": VIDEO, "visible_indices": SOME, "packed": True},
        "packed: True with 4 indices for 16 patches",
    ),
    "empty": ({"pixel_values": torch.zeros(1, 3, 0, 14, 14)}, "nothing empty"),
    "integers": ({"pixel_values": torch.zeros(1, 3, 14, 14).int()}, "torch.int32"),
    "attentions": (
        {"pixel_values": VIDEO, "output_attentions": True},
        "output_attentions: True; allowed: False",
    ),
}


def make(style: str) -> Encoder:
    """Attention far from uniform, biases that are not 0."""
    encoder = build_encoder(ModelConfig(**{**vars(CONFIG), "rope_style": style}), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
    return encoder


def flat_patches(given: Tensor) -> Tensor:
    """(B, 3, [T,] H, W) -> (B, N, 588) with a loop, patch by patch."""
    video = given if given.ndim == 5 else given[:, :, None]
    _, _, frames, height, width = video.shape
    cut = [
        video[:, :, t, y : y + 14, x : x + 14].flatten(1)
        for t in range(frames)
        for y in range(0, height, 14)
        for x in range(0, width, 14)
    ]
    return torch.stack(cut, 1)


@pytest.fixture(scope="module", params=["installed", "4"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run the script under a version of transformers -> what it found."""
    if request.param == "4" and not OLD.is_dir() and "CI" not in os.environ:
        pytest.skip(f"no {OLD}; `make test` installs it")

    def call(folder: Path) -> dict[str, Any]:
        given, out = folder.with_name("calls.pt"), folder.with_name("out.pt")
        torch.save(CALLS | {name: call for name, (call, _) in REFUSED.items()}, given)
        path = str(OLD) if request.param == "4" else ""
        cache = str(folder.with_name("cache"))
        environment = os.environ | {"PYTHONPATH": path, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        again = str(folder.with_name("again"))
        command = [sys.executable, str(SCRIPT), str(folder), str(given), str(out), again]
        done = subprocess.run(
            command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = torch.load(out)
        assert found["about"]["version"].startswith("4." if request.param == "4" else "5.")
        return found

    return call


@pytest.mark.parametrize("style", ["released", "rotary"])
def test_an_export_answers_every_public_call_and_comes_back(run: Any, tmp_path: Path, style: str):
    encoder = make(style)
    save_encoder(encoder, tmp_path / "model", image_size=SIDE)
    found = run(tmp_path / "model")
    weights = to_public({n: t.double() for n, t in encoder.state_dict().items()}, encoder.config)
    for name, (which, positions) in EXPECTED.items():
        patches = flat_patches(CALLS[name]["pixel_values"])
        for i, (mine, places) in enumerate(zip(which, positions, strict=True)):
            expected = reference.encode(weights, encoder.config, patches[i, mine], places)
            for ours, theirs in zip(
                (found[name]["tokens"][i], found[name]["pooled"][i]), expected, strict=True
            ):
                torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5, msg=name)
    assert len(found["video"]["states"]) == CONFIG.depth + 1
    about = found["about"]
    assert not any(about["report"].values()), about["report"]
    assert not about["modules"], "the directory is self-contained"
    assert about["pixels"].shape == (1, 3, SIDE, SIDE)
    assert not any(about["frozen"].values()), "blocks behind frozen ones learn, recomputed too"
    kept, recomputed = about["trained"]["kept"], about["trained"]["recomputed"]
    assert kept.abs().max() > 0
    torch.testing.assert_close(kept, recomputed, rtol=0, atol=1e-6)
    deviation = about["fresh"]["encoder.layers.0.mlp.fc1.weight"]
    assert deviation.item() == pytest.approx(CONFIG.init_std, rel=0.05)
    loaded = load_encoder(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors.index.json").is_file()
    assert loaded.config == encoder.config
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    for name, (_, words) in REFUSED.items():
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(found[name].get("error", "was not refused"))
