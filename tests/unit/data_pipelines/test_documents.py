"""Words on pictures -> documents and their labels."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.documents import VOCABULARY, normalised, read_vocabulary
from data_pipelines.prepare import prepare
from data_pipelines.shards.verify import verify
from ovtrain.config.prepare import OcrConfig
from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import key_hash

from .conftest import PREPARE
from .test_inputs import encoded, picture, skipped, tar
from .test_prepare import dataset


def line(image: str, *words: str, **more: object) -> str:
    return json.dumps({"image": image, "words": [{"text": word} for word in words], **more})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pictures, one of them in a tar; five were read by an engine."""
    folder = tmp_path / "in"
    (folder / "scans").mkdir(parents=True)
    for n in range(5):
        (folder / f"scans/{n}.jpg").write_bytes(encoded(picture(160, 120, n)))
    tar(folder / "more.tar", {"page.jpg": encoded(picture(120, 160, 9))})
    return folder


WORDS = [
    line("scans/0.jpg", "Invoice", "total:", "TOTAL", "(2024)", "unique0"),
    line("scans/1.jpg", "invoice,", "Total", "café"),
    line("scans/2.jpg", "cafe\u0301", "invoice"),
    line("scans/3.jpg"),  # nothing on it
    line("more.tar/page.jpg", "2024", "...", "total"),
    line("elsewhere.jpg", "invoice", "stray", "stray"),
]


def ocr(folder: Path, lines: list[str], **settings: object) -> OcrConfig:
    (folder / "words").mkdir(exist_ok=True)
    half = len(lines) // 2
    (folder / "words/a.jsonl").write_text("\n".join(lines[:half]) + "\n")
    (folder / "words/b.jsonl").write_text("\n".join(lines[half:]))
    return OcrConfig(**{"words": str(folder / "words"), **settings})


def run(source: Path, out: Path, config: OcrConfig) -> dict[str, list[str]]:
    """Labels of each document, as words."""
    assert prepare(source, out, replace(PREPARE, ocr=config))
    store = LabelStore.read(out / "labels/document", verify(out / "document").fingerprint)
    words = (out / "labels/document" / VOCABULARY).read_text().splitlines()
    assert store.classes == len(words)
    keys = [sample["__key__"] for sample in dataset(out / "document")]
    return {key: [words[i] for i in store.lookup(key_hash([key])[0])] for key in keys}


def test_words_of_several_documents_become_labels(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run(source, out, ocr(tmp_path, WORDS)) == {
        "page": ["2024", "total"],
        "0": ["invoice", "total", "2024"],
        "1": ["invoice", "total", "café"],
        "2": ["café", "invoice"],
        "3": [],
    }
    # By number of documents, then by code point; a word on a picture that is no document is none.
    assert read_vocabulary(out / "labels/document" / VOCABULARY) == [
        "invoice",
        "total",
        "2024",
        "café",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["documents"] == {
        "documents": 5,
        "unlabelled": 1,
        "classes": 4,
        "unused_lines": 1,
    }
    assert summary["samples"] == {"image": 1, "document": 5}
    for sample in dataset(out / "document"):
        assert json.loads(sample["json"])["kind"] == "document"
        assert sample["jpg"]


def test_the_vocabulary_has_bounds(source: Path, tmp_path: Path):
    config = ocr(tmp_path, WORDS, classes=2, tags=1)
    assert run(source, tmp_path / "a", config) == {
        "page": ["total"],
        "0": ["invoice"],
        "1": ["invoice"],
        "2": ["invoice"],
        "3": [],
    }
    rare = ocr(tmp_path, WORDS, min_documents=1, max_share=0.4)
    assert run(source, tmp_path / "b", rare)["0"] == ["2024", "unique0"]


def test_held_out_documents_take_the_vocabulary_of_others(source: Path, tmp_path: Path):
    run(source, tmp_path / "a", ocr(tmp_path, WORDS))
    words = [line("scans/0.jpg", "Total", "other"), line("scans/1.jpg", "other")]
    vocabulary = tmp_path / "a/labels/document" / VOCABULARY
    config = ocr(tmp_path, words, vocabulary=str(vocabulary))
    assert run(source, tmp_path / "b", config) == {"0": ["total"], "1": []}
    assert (tmp_path / "b/labels/document" / VOCABULARY).read_text() == vocabulary.read_text()


def test_unsure_words_and_damaged_lines_are_left_out_by_name(source: Path, tmp_path: Path):
    words = [{"text": "sure", "confidence": 0.9}, {"text": "unsure", "confidence": 0.2}]
    lines = [
        *(json.dumps({"image": f"scans/{n}.jpg", "words": words}) for n in range(2)),
        '{"image": "scans/2.jpg"}',
        "{not json",
        json.dumps({"image": 3, "words": []}),
        json.dumps({"image": "scans/3.jpg", "words": [{"text": 5}]}),
    ]
    found = run(source, tmp_path / "out", ocr(tmp_path, lines, confidence=0.5))
    assert found == {"0": ["sure"], "1": ["sure"]}
    names = {k: v.split(" (")[0] for k, v in skipped(tmp_path / "out").items()}
    bad = ("a.jsonl, line 3", "b.jsonl, line 1", "b.jsonl, line 2", "b.jsonl, line 3")
    assert names == dict.fromkeys(bad, "not a line of words")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Straße,", "strasse"),
        ("\uff21\uff22\uff23", "abc"),
        ("--", ""),
        ("'don't'", "don't"),
        ("3.14", "3.14"),
        ("नमस्ते।", "नमस्ते"),
        ("\u6f22\u5b57", "\u6f22\u5b57"),
        (" New\t York ", "new york"),
    ],
)
def test_words_are_compared_in_one_form(word: str, expected: str):
    assert normalised(word) == expected


def test_a_missing_word_file_and_a_bad_vocabulary_are_typed_errors(source: Path, tmp_path: Path):
    missing = replace(PREPARE, ocr=OcrConfig(words=str(tmp_path / "none.jsonl")))
    with pytest.raises(ConfigError, match="no such file"):
        prepare(source, tmp_path / "out", missing)
    (tmp_path / "v.txt").write_text("a\na\n")
    with pytest.raises(LabelError, match="a word stands twice"):
        read_vocabulary(tmp_path / "v.txt")


def test_a_document_s_picture_is_what_the_file_shows(source: Path, tmp_path: Path):
    run(source, tmp_path / "out", ocr(tmp_path, WORDS))
    (sample,) = [s for s in dataset(tmp_path / "out/document") if s["__key__"] == "page"]
    from PIL import Image

    shown = np.asarray(Image.open(io.BytesIO(sample["jpg"])), float)
    expected = np.asarray(picture(120, 160, 9).resize((112, 149), Image.Resampling.LANCZOS), float)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 3
