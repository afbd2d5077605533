"""Words that an OCR engine read on pictures -> vocabulary -> labels of documents.

One line per picture, in any number of .jsonl files::

    {"image": "scans/0001.png", "words": [{"text": "Invoice", "confidence": 0.98}, ...]}

``image``: the picture's name as the inventory has it (TAR/MEMBER in tars); ``confidence`` 0 to 1
and anything else (boxes) may be there or not. A word is compared in Unicode's NFKC form, lower
case, without punctuation at its ends. A document's labels are the first ``ocr.tags`` different
words of the vocabulary on it; one without any has none, and takes part in no loss of that head.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.job import word_files
from ovtrain.config.prepare import OcrConfig
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore

VOCABULARY = "vocabulary.txt"
"""One word a line; the first is class 0."""


@dataclass(frozen=True)
class Page:
    """One line: the picture's name and its words, surest or not, in reading order."""

    image: str
    words: list[str]


def pages(config: OcrConfig, faults: dict[str, str] | None = None) -> Iterator[Page]:
    """All lines that can be read; why others cannot goes to ``faults``. Raises ConfigError where
    ``ocr.words`` names no file."""
    named: set[str] = set()
    for path in word_files(config.words):
        with open(path, encoding="utf-8", errors="replace") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                fault = ""
                try:
                    page = _page(json.loads(line), config.confidence)
                    if page.image not in named:
                        named.add(page.image)
                        yield page
                    else:
                        fault = f"its picture has a line before ({page.image})"
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    fault = f"not a line of words ({error})"
                if fault and faults is not None:
                    faults[f"{path.name}, line {number}"] = fault


def _page(row: dict[str, Any], confidence: float) -> Page:
    """Raises whatever a row of another form gives."""
    words = [
        normalised(word["text"])
        for word in row["words"]
        if float(word.get("confidence", 1.0)) >= confidence
    ]
    if not isinstance(row["image"], str):
        raise TypeError("image is no text")
    return Page(posixpath.normpath(row["image"]), [word for word in words if word])


def normalised(word: str) -> str:
    """NFKC, lower case, without punctuation, symbols and spaces at the ends; "" where nothing is
    left."""
    text = unicodedata.normalize("NFKC", word).casefold()
    kept = [i for i, letter in enumerate(text) if unicodedata.category(letter)[0] in "LMN"]
    return " ".join(text[kept[0] : kept[-1] + 1].split()) if kept else ""


def build_vocabulary(
    found: Iterator[Page], names: Mapping[str, str], config: OcrConfig
) -> list[str]:
    """Words by the number of documents they are on, commonest first; ties in code-point order.
    ``names``: those pictures that became documents."""
    counts: Counter[str] = Counter()
    for page in found:
        if page.image in names:
            counts.update(set(page.words))
    most = config.max_share * len(names)
    kept = [(-n, word) for word, n in counts.items() if config.min_documents <= n <= most]
    return [word for _, word in sorted(kept)[: config.classes]]


def read_vocabulary(path: Path) -> list[str]:
    """Raises LabelError."""
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(str(path), f"unreadable ({error})", fix="name a vocabulary.txt") from error
    if not words or len(set(words)) != len(words) or "" in words:
        raise LabelError(str(path), "empty, or a word stands twice", allowed="one word a line")
    return words


@dataclass(frozen=True)
class Labelled:
    """What labelling gave: documents, those without a label, classes; lines of words whose picture
    is no document."""

    documents: int
    unlabelled: int
    classes: int
    unused_lines: int


def label_documents(
    config: OcrConfig,
    documents: Sequence[tuple[str, str]],
    fingerprint: str,
    out: Path,
    faults: dict[str, str],
) -> Labelled:
    """Write the label store and ``vocabulary.txt`` of ``documents``, (picture's name, sample key)
    in shard order, to ``out``; why lines of words are left out goes to ``faults``."""
    names = dict(documents)
    if config.vocabulary:
        vocabulary = read_vocabulary(Path(config.vocabulary))
    else:
        vocabulary = build_vocabulary(pages(config), names, config)
    ids = {word: number for number, word in enumerate(vocabulary)}
    labels = {key: np.empty(0, np.int32) for key in names.values()}
    unused = 0
    for page in pages(config, faults):
        unused += page.image not in names
        if page.image in names:
            labels[names[page.image]] = _labels(page, ids, config.tags)
    with atomic_open(out / VOCABULARY, "w") as handle:
        handle.writelines(word + "\n" for word in vocabulary)
    store = LabelStore.build(list(labels), list(labels.values()), len(ids), fingerprint)
    store.write(out)
    unlabelled = sum(not len(found) for found in labels.values())
    return Labelled(len(labels), unlabelled, len(ids), unused)


def _labels(page: Page, ids: Mapping[str, int], most: int) -> np.ndarray:
    known = dict.fromkeys(ids[word] for word in page.words if word in ids)
    return np.array(list(known)[:most], np.int32)
