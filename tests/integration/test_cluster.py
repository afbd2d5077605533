"""Generated clips -> shards -> labels of two seeds, which agree and follow the motion classes."""

import json
from pathlib import Path

import pytest

from clustering.report import Request, write_report
from clustering.run import main as cluster
from data_pipelines.motions import CLASSES
from data_pipelines.prepare import main as prepare
from data_pipelines.synthetic import SyntheticConfig, stem, write_clip
from ovtrain.schema.atomic import write_json

FEW = ["moves_right", "moves_up", "orbits_cw", "grows", "spins_ccw", "light_hops"]


def make_clips(out: Path, names: list[str], each: int, frames: int) -> Path:
    """``each`` clips of every class in ``names``; the classes file."""
    kinds = list(CLASSES)
    labels = [kinds.index(name) for name in names] * each
    for index, label in enumerate(labels):
        write_clip(SyntheticConfig(frames=frames), out, ("train", index, label))
    known = {stem("train", index): label for index, label in enumerate(labels)}
    write_json(out / "classes.json", {"classes": kinds, "labels": known})
    return out / "classes.json"


@pytest.mark.parametrize(
    ("names", "each", "frames", "clusters"),
    [
        pytest.param(FEW, 5, 32, 6, id="six-classes"),
        pytest.param(list(CLASSES), 10, 64, 40, id="all-classes", marks=pytest.mark.full),
    ],
)
def test_two_seeds_agree_and_labels_follow_the_classes(tmp_path, names, each, frames, clusters):
    classes = make_clips(tmp_path / "clips", names, each, frames)
    data, outs = tmp_path / "data", [tmp_path / f"seed-{seed}" for seed in (0, 1)]
    settings = ["size=112", f"frames={frames}", "images_per_clip=0", "workers=1"]
    assert prepare([str(tmp_path / "clips" / "train"), "--out", str(data), *settings]) == 0
    for seed, out in enumerate(outs):
        words = [str(data / "video"), "--out", str(out), f"clusters={clusters}", "top=2"]
        known = ["--features", str(outs[0] / "features")] if seed else []
        assert cluster([*words, *known, f"seed={seed}"]) == 0

    asked = Request(outs[0], (outs[1],), shards=data / "video", classes=classes)
    report = write_report(asked)

    (agreement,) = report.agreement.values()
    print(json.dumps([agreement, report.classes]))
    assert agreement["samples"] == each * len(names)
    assert agreement["ari"] > 0.3
    assert abs(agreement["ari_permuted"]) < 0.05
    assert agreement["nmi"] > agreement["nmi_permuted"] + 0.2
    assert agreement["shared"] > agreement["shared_permuted"] + 0.2
    assert report.classes is not None
    assert report.classes["purity"] > 1.5 * report.classes["purity_permuted"]
    assert report.classes["nmi"] > report.classes["nmi_permuted"] + 0.2
    page = report.page.read_text()
    assert page.count("data:image/jpeg") > 20
    assert 'class="undecoded"' not in page
    assert any(f"{name}, " in page for name in names)
