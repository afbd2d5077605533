"""Preparation section: raw media -> clips, pictures, documents -> energy -> shards."""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.rules import (
    CRF,
    NOT_NEGATIVE,
    PERCENTILE,
    POSITIVE,
    QUALITY,
    SHARE,
    SHARE_OR_NONE,
    broken,
    not_among,
)

CAMERA = ("none", "median")
NORMALISE = ("frame", "clip")
LIST_MODES = ("l0", "l1", "max", "sum")


@dataclass(frozen=True)
class EnergyConfig:
    """Paper section 2.1: H = (w_motion M + w_residual R) / (w_motion + w_residual).

    ``normalise``: percentile per frame (the paper's formula) or per clip. ``camera``: model of the
    camera motion that is removed first. ``lists``: how two reference lists become one vector.
    """

    motion_weight: float = 1.0
    residual_weight: float = 1.0
    percentile: float = 95.0
    normalise: str = "frame"
    camera: str = "median"
    lists: str = "max"
    per_reference_distance: bool = True

    def problems(self) -> list[str]:
        choices = {"normalise": NORMALISE, "camera": CAMERA, "lists": LIST_MODES}
        rules = {
            NOT_NEGATIVE: ("motion_weight", "residual_weight"),
            PERCENTILE: ("percentile",),
        }
        found = not_among(self, "energy.", choices) + broken(self, "energy.", rules)
        if self.motion_weight + self.residual_weight == 0:
            found.append("energy weights are both 0; at least one must count")
        return found


@dataclass(frozen=True)
class FilterConfig:
    """Media that are left out, and counted, by what the inventory says of them; 0 = no bound.

    min_side     pixels of the short side.
    max_aspect   long side / short side.
    min_fps, max_fps, min_seconds, max_seconds   of videos; one whose rate or length is unknown
                 is held to no bound on it.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_fps: float = 0.0
    max_fps: float = 0.0
    min_seconds: float = 0.0
    max_seconds: float = 0.0

    def problems(self) -> list[str]:
        sides = ("min_side", "max_aspect")
        bounds = ("min_fps", "max_fps", "min_seconds", "max_seconds")
        return broken(self, "filters.", {NOT_NEGATIVE: (*sides, *bounds)})


@dataclass(frozen=True)
class DedupConfig:
    """Of several equal media, and of several samples that look alike, the first is kept.

    exact      leave out media whose bytes (and listed times) are those of an earlier one.
    near       leave out samples whose perceptual hash is near that of an earlier one.
    distance   most differing bits, per 64, at which two hashes count as near.
    """

    exact: bool = True
    near: bool = False
    distance: int = 6

    def problems(self) -> list[str]:
        return broken(self, "dedup.", {NOT_NEGATIVE: ("distance",)})


@dataclass(frozen=True)
class OcrConfig:
    """Words that an OCR engine read on pictures; those pictures become documents, the words their
    labels (docs/preparation.md, "Words on pictures").

    words          a .jsonl file, or a folder of them; "" = no documents.
    vocabulary     vocabulary.txt of another preparation to label with; "" builds one.
    classes        most words in a vocabulary that is built, the commonest first.
    min_documents  a word of the vocabulary is on at least so many documents,
    max_share      and on at most this share of them.
    confidence     words that the engine was less sure of are left out.
    tags           most labels of a document.
    """

    words: str = ""
    vocabulary: str = ""
    classes: int = 365_187
    min_documents: int = 2
    max_share: float = 1.0
    confidence: float = 0.0
    tags: int = 100

    def problems(self) -> list[str]:
        rules = {
            POSITIVE: ("classes", "min_documents", "tags"),
            SHARE: ("max_share",),
            SHARE_OR_NONE: ("confidence",),
        }
        return broken(self, "ocr.", rules)


@dataclass(frozen=True)
class PrepareConfig:
    """Clips of ``frames`` consecutive frames at ``size`` x ``size`` (short side resized, centre
    cropped), transcoded with the paper's settings (GOP 32, no B-frames, one reference).

    clips_per_video  clips at seeded places of each video, or of each span of a list.
    scene_cuts       score, 0 to 1, above which a frame begins a scene; clips lie inside scenes.
                     0 = clips may lie anywhere. 0.3 suits most footage.
    native           streams that have the right picture size keep their coding: whole files, and
                     cuts at key frames of streams without reordering.
    images_per_clip  stills of each clip, in the image source.
    pictures         whether picture files are taken, too.
    picture_side     short side to which larger pictures are reduced; 0 = ``size``.
    picture_quality  JPEG quality of pictures that are written anew.
    """

    size: int = 224
    frames: int = 64
    patch: int = 14
    gop: int = 32
    crf: int = 23
    preset: str = "fast"
    clips_per_video: int = 1
    scene_cuts: float = 0.0
    native: bool = False
    images_per_clip: int = 2
    pictures: bool = True
    picture_side: int = 0
    picture_quality: int = 92
    samples_per_shard: int = 256
    workers: int = 2
    seed: int = 0
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    ocr: OcrConfig = field(default_factory=OcrConfig)

    def problems(self) -> list[str]:
        counts = ("size", "frames", "patch", "gop", "clips_per_video", "samples_per_shard")
        rules = {
            POSITIVE: (*counts, "workers"),
            NOT_NEGATIVE: ("images_per_clip", "picture_side", "seed"),
            SHARE_OR_NONE: ("scene_cuts",),
            QUALITY: ("picture_quality",),
            CRF: ("crf",),
        }
        found = broken(self, "", rules)
        for section in (self.energy, self.filters, self.dedup, self.ocr):
            found += section.problems()
        if not found and self.size % self.patch:
            below = max(self.size // self.patch, 1) * self.patch
            found.append(
                f"size={self.size} must be a multiple of patch={self.patch}; "
                f"use {below} or {below + self.patch}"
            )
        return found
