"""The generated clips: deterministic, real HEVC, and class-blind at their middle frame."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from data_pipelines.motions import CLASSES, SPANS
from data_pipelines.scenes import animate, draw_scene
from data_pipelines.sprites import MEAN_LUMA, TONES, sprite_look
from data_pipelines.synthetic import draw_clip, generate, labels_of, main, write_clip

from .conftest import SYNTHETIC


def test_the_middle_frame_is_the_same_whatever_the_class():
    for index in range(2):
        middles = [draw_clip(SYNTHETIC, "train", index, c)[16] for c in range(len(CLASSES))]
        assert all(np.array_equal(middles[0], other) for other in middles[1:])


def test_every_class_changes_the_clip_away_from_the_middle():
    clips = [draw_clip(SYNTHETIC, "train", 0, c).astype(int) for c in range(len(CLASSES))]
    for a in range(len(clips)):
        for b in range(a):
            assert np.abs(clips[a] - clips[b]).max() > 30, (CLASSES[a], CLASSES[b])


@pytest.mark.parametrize("name", CLASSES)
def test_exactly_the_sprites_of_the_class_move_or_change(name: str):
    scene = draw_scene((0, 0, 3), 112, 0)
    tracks = animate(scene, name, (0, 0, 3), 64)
    moved = [bool(np.ptp(track.poses, axis=0).any()) for track in tracks]
    changed = [bool(track.look.any()) for track in tracks]
    if name.startswith("flip"):
        assert (moved, changed) == ([False, False], [True, True])
    else:
        assert (sum(moved), changed) == (
            2 if name.startswith(("shake", "nod")) else 1,
            [False, False],
        )
    if name.startswith(TONES):
        assert moved == [name.startswith(tone) for tone in TONES]


@pytest.mark.parametrize("name", [name for name in CLASSES if "_early" in name or "_late" in name])
def test_sprites_that_act_in_turn_act_when_the_class_says(name: str):
    tracks = animate(draw_scene((0, 0, 3), 112, 0), name, (0, 0, 3), 64)
    for tone, track in zip(TONES, tracks, strict=True):
        acts = np.abs(np.diff(track.poses, axis=0)).any(axis=1)
        when = np.flatnonzero(acts).mean() / 63
        nearest = min(SPANS, key=lambda span: abs(np.mean(SPANS[span]) - when))
        assert f"{tone}_{nearest}" in name


def test_sprites_stay_inside_the_picture_and_the_backgrounds_pan_in_some_clips():
    scenes = [draw_scene((1, 0, i), 112, 0) for i in range(60)]
    for i, scene in enumerate(scenes):
        for track in animate(scene, CLASSES[i % len(CLASSES)], (1, 0, i), 64):
            assert track.poses[:, :2].min() > 8
            assert track.poses[:, :2].max() < 104
    assert 10 < sum(bool(scene.pan.any()) for scene in scenes) < 40


@pytest.mark.parametrize("tone", TONES)
def test_sprites_have_the_luma_of_their_tone(tone):
    for seed in range(12):
        look = sprite_look(np.random.default_rng(seed), tone, seed % 2, 16).astype(float)
        mean = np.average(look[..., 0], weights=look[..., 3])
        low, high = MEAN_LUMA[tone]
        assert low - 15 < mean < high + 15


def test_splits_share_no_scene():
    train, heldout = draw_clip(SYNTHETIC, "train", 0, 0), draw_clip(SYNTHETIC, "heldout", 0, 0)
    assert np.abs(train[16].astype(int) - heldout[16]).mean() > 5


def test_labels_are_balanced_and_shuffled():
    labels = labels_of(replace(SYNTHETIC, train_clips=4 * len(CLASSES)), "train")
    assert np.bincount(labels).tolist() == [4] * len(CLASSES)
    assert labels != sorted(labels)


def test_files_are_hevc_with_the_papers_structure(clips: Path):
    for path in sorted(clips.rglob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            assert (context.name, context.codec_tag, context.pix_fmt) == ("hevc", "hvc1", "yuv420p")
            types = [PictureType(f.pict_type).name for f in container.decode(stream)]
            assert types == ["I"] + ["P"] * 31


def test_classes_json_names_every_clip(clips: Path):
    about = json.loads((clips / "classes.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert set(about["labels"]) == {path.stem for path in clips.rglob("*.mp4")}


def test_the_same_arguments_give_the_same_bytes(clips: Path, tmp_path: Path):
    label = labels_of(SYNTHETIC, "train")[2]
    write_clip(SYNTHETIC, tmp_path, ("train", 2, label))
    name = "train/train-000002.mp4"
    assert (tmp_path / name).read_bytes() == (clips / name).read_bytes()


def test_a_second_run_writes_only_what_is_missing(tmp_path: Path):
    config = replace(SYNTHETIC, train_clips=2, heldout_clips=1, frames=16)
    assert generate(config, tmp_path, workers=1) == 3
    first = (tmp_path / "train/train-000001.mp4").read_bytes()
    (tmp_path / "train/train-000001.mp4").unlink()
    assert generate(config, tmp_path, workers=1) == 1
    assert (tmp_path / "train/train-000001.mp4").read_bytes() == first
    fewer = replace(config, train_clips=1)
    assert generate(fewer, tmp_path, workers=1) == 2
    assert [p.name for p in sorted(tmp_path.rglob("*.mp4"))] == [
        "heldout-000000.mp4",
        "train-000000.mp4",
    ]


def test_a_bad_size_is_an_error_without_traceback(tmp_path: Path, capsys):
    assert main(["--out", str(tmp_path), "--size", "113"]) == 2
    assert capsys.readouterr().err.startswith("error: size=113")
