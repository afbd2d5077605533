"""Stages: parts that merge to the whole, interruption, and refusals that say what to do."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines import journal
from data_pipelines.job import ORDER
from data_pipelines.journal import Journal, StageError
from data_pipelines.manifests import Manifest, Part
from data_pipelines.prepare import main, prepare, prepare_part
from ovtrain.config.prepare import DedupConfig
from ovtrain.schema.errors import MediaError

from .conftest import PREPARE, write_h264

OUTPUTS = ("inventory.jsonl", "skipped.jsonl", "duplicates.jsonl", "video", "image")


def contents(out: Path) -> dict[str, bytes]:
    """Every file that a preparation leaves, but for what tells of time."""
    paths = [p for name in OUTPUTS for p in [out / name, *(out / name).glob("*")] if p.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("tasks", [1, 4])
def test_an_array_of_tasks_gives_what_one_command_gives(
    prepared: Path, tmp_path: Path, tasks: int, monkeypatch
):
    videos = (prepared / "videos").read_text()
    settings = ["size=112", "frames=32", "samples_per_shard=3", "workers=1", "preset=ultrafast"]
    for stage in ORDER:
        for number in reversed(range(tasks)):  # in any order, from any first number
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number + 5))
            monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
            monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(tasks))
            assert main([videos, "--out", str(tmp_path), "--stage", stage, *settings]) == 0
    assert contents(tmp_path) == contents(prepared)
    assert not (tmp_path / ".work").exists()
    assert not prepare(Path(videos), tmp_path, PREPARE)
    assert "nothing to do" in prepare_part(Path(videos), tmp_path, PREPARE, "samples", Part(0, 4))


def test_missing_parts_are_named(prepared: Path, tmp_path: Path):
    videos = Path((prepared / "videos").read_text())
    with pytest.raises(StageError, match="run --stage inventory first"):
        prepare_part(videos, tmp_path, PREPARE, "plan", Part())
    for number in (0, 3):
        prepare_part(videos, tmp_path, PREPARE, "inventory", Part(number, 4))
    with pytest.raises(StageError, match="2 of 4 parts are missing: 1/4, 2/4"):
        prepare_part(videos, tmp_path, PREPARE, "plan", Part())


def test_a_stage_under_other_settings_than_the_one_before_is_refused(
    prepared: Path, tmp_path: Path
):
    videos = Path((prepared / "videos").read_text())
    for stage in ("inventory", "plan"):
        prepare_part(videos, tmp_path, PREPARE, stage, Part())
    with pytest.raises(StageError, match="made from other files or settings"):
        prepare_part(videos, tmp_path, replace(PREPARE, crf=30), "samples", Part())
    # The inventory knows nothing of the coding, so it still holds.
    assert "there already" in prepare_part(
        videos, tmp_path, replace(PREPARE, crf=30), "inventory", Part()
    )


def test_parts_made_from_other_files_are_told_apart(prepared: Path, tmp_path: Path, clips: Path):
    videos = tmp_path / "videos"
    shutil.copytree((prepared / "videos").read_text(), videos)
    out = tmp_path / "out"
    prepare_part(videos, out, PREPARE, "inventory", Part(0, 2))
    shutil.copy(next((clips / "heldout").glob("*.mp4")), videos / "later.mp4")
    prepare_part(videos, out, PREPARE, "inventory", Part(1, 2))
    with pytest.raises(StageError, match=r"part-00001-of-00002\.jsonl made from other files"):
        prepare_part(videos, out, PREPARE, "plan", Part())


@pytest.mark.parametrize("text", ["3", "4/4", "-1/4", "a/b", "1/0", ""])
def test_no_parts(text: str):
    with pytest.raises(StageError, match="from 0 to N - 1"):
        Part.parse(text)


def write(manifest: Manifest, part: Part, items: list[str], stop: int = 99) -> list[str]:
    """Do a part, an exception at the ``stop``-th item of it; the items that were done."""
    done: list[str] = []

    def make(_: Journal, mine: Iterator[tuple[int, str]]):
        for number, item in reversed(list(mine)):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(item)
            yield number, {"value": item}

    manifest.write(part, "these", items, make)
    return done


def test_a_part_goes_on_behind_the_items_that_are_done(tmp_path: Path):
    manifest, items = Manifest(tmp_path, "stage"), list("abcdefgh")
    with pytest.raises(KeyboardInterrupt):
        write(manifest, Part(1, 2), items, stop=2)
    partial = manifest.folder / "part-00001-of-00002.jsonl.partial"
    with open(partial, "a") as handle:
        handle.write('{"item": 3, "val')  # a line that was cut short
    assert not manifest.is_there(Part(1, 2), "these")
    assert write(manifest, Part(1, 2), items) == ["d", "b"]
    assert write(manifest, Part(0, 2), items) == ["g", "e", "c", "a"]
    assert [row["value"] for row in manifest.rows()] == items
    assert manifest.is_there(Part(1, 2), "these")
    assert not manifest.is_there(Part(1, 2), "others")


def test_a_part_that_is_cut_short_while_it_is_put_in_order_holds_each_row_once(
    tmp_path: Path, monkeypatch
):
    manifest, items, lines = Manifest(tmp_path, "stage"), list("abcd"), []

    def interrupt(row: dict) -> bytes:
        lines.append(row)
        if len(lines) == len(items) + 3:
            raise KeyboardInterrupt
        return whole(row)

    whole = journal._line
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(manifest, Part(), items)
    assert write(manifest, Part(), items) == []
    assert [row["value"] for row in manifest.rows()] == items


def test_another_split_replaces_the_parts_of_before(tmp_path: Path):
    manifest = Manifest(tmp_path, "stage")
    for number in range(3):
        write(manifest, Part(number, 3), list("abcd"))
    with pytest.raises(StageError, match=r"split in 3 parts already.*--part 0/3"):
        write(manifest, Part(), list("ab"))
    assert manifest.is_there(Part(), "these")
    rows = lambda _, items: ((n, {"value": item}) for n, item in items)  # noqa: E731
    manifest.write(Part(), "those", list("ab"), rows)
    assert [path.name for path in manifest.folder.iterdir()] == ["part-00000-of-00001.jsonl"]
    assert [row["value"] for row in manifest.rows()] == ["a", "b"]


def test_what_was_begun_from_other_inputs_begins_anew(tmp_path: Path):
    manifest = Manifest(tmp_path, "stage")
    with pytest.raises(KeyboardInterrupt):
        write(manifest, Part(), list("abc"), stop=2)
    rows = lambda _, items: ((n, {"value": item}) for n, item in items)  # noqa: E731
    manifest.write(Part(), "those", list("xyz"), rows)
    assert [row["value"] for row in manifest.rows()] == ["x", "y", "z"]


def test_a_damaged_manifest_names_its_line(tmp_path: Path):
    manifest = Manifest(tmp_path, "stage")
    write(manifest, Part(), list("abc"))
    path = manifest.folder / Part().file
    path.write_text(path.read_text().replace('{"item": 1', "oops"))
    with pytest.raises(StageError, match="line 3: not a row"):
        list(manifest.rows())


def test_a_part_is_written_by_one_process_at_a_time(tmp_path: Path):
    path = tmp_path / "part"
    code = (
        "import sys; from pathlib import Path; from data_pipelines.journal import Journal\n"
        f"journal = Journal.open(Path({str(path)!r}), 'these')\n"
        "print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "taken\n"
        with pytest.raises(StageError, match="another process works on this part"):
            Journal.open(path, "these")
        holder.communicate("")
    Journal.open(path, "these").__exit__()


def test_more_parts_are_merged_than_files_may_be_open(tmp_path: Path):
    manifest, items = Manifest(tmp_path, "stage"), [str(n) for n in range(300)]
    for number in range(150):
        write(manifest, Part(number, 150), items)
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 100, most))
    try:
        rows = [row["value"] for row in manifest.rows()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
    assert rows == items


def test_the_content_of_a_manifest_is_that_of_its_rows_however_split(tmp_path: Path):
    contents = set()
    for count in (1, 3):
        manifest = Manifest(tmp_path / str(count), "stage")
        for number in range(count):
            write(manifest, Part(number, count), list("abcd"))
        contents.add(manifest.content())
    other = Manifest(tmp_path / "other", "stage")
    write(other, Part(), list("abce"))
    assert len(contents) == 1
    assert other.content() not in contents


def test_stages_that_read_other_rows_are_made_again(tmp_path: Path):
    """The inventory is taken twice, and finds another rate the second time."""
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    write_h264(videos / "a.mp4", 40)
    for stage in ("inventory", "plan", "samples"):
        prepare_part(videos, out, PREPARE, stage, Part())
    assert "there already" in prepare_part(videos, out, PREPARE, "samples", Part())
    path = out / "manifests/inventory" / Part().file
    made_from = Manifest(out, "inventory").made_from()
    row = next(Manifest(out, "inventory").rows())
    row["media"][0]["fps"] = 24.0
    path.unlink()
    with Journal.open(path.with_name(path.name + ".partial"), made_from) as again:
        again.add(row.pop("item"), row)
    prepare_part(videos, out, PREPARE, "inventory", Part())
    with pytest.raises(StageError, match="run --stage plan again"):
        prepare_part(videos, out, PREPARE, "samples", Part())
    assert "done" in prepare_part(videos, out, PREPARE, "plan", Part())


def test_what_changed_or_went_since_the_inventory_is_named_and_may_be_tried_again(tmp_path: Path):
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    for name in ("a", "b", "c"):
        write_h264(videos / f"{name}.mp4", 40)
    config = replace(PREPARE, images_per_clip=0, dedup=DedupConfig(exact=False))
    for stage in ("inventory", "plan"):
        prepare_part(videos, out, config, stage, Part())
    gone = (videos / "b.mp4").rename(tmp_path / "b.mp4")
    write_h264(videos / "a.mp4", 50)
    for stage in ORDER[3:]:
        prepare_part(videos, out, config, stage, Part())
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["file"]: row["reason"].split(" (")[0] for row in skipped} == {
        "a.mp4": "changed since the inventory was taken",
        "b.mp4": "not there any more",
    }
    gone.rename(videos / "b.mp4")
    assert prepare(videos, out, config, retry=True)
    assert (out / "skipped.jsonl").read_text() == ""
    assert not prepare(videos, out, config, retry=True)


def test_a_failure_that_may_pass_is_tried_again_in_its_stage(tmp_path: Path):
    manifest = Manifest(tmp_path, "stage")

    def make(_: Journal, items: Iterator[tuple[int, str]]):
        for number, item in items:
            failed = item in tried
            yield number, {"skipped": [[item, "timed out (5 s)"]]} if failed else {"value": item}

    tried = {"b"}
    manifest.write(Part(), "these", list("abc"), make)
    assert manifest.forget_failures() == 1
    tried.clear()
    manifest.write(Part(), "these", list("abc"), make)
    assert [row["value"] for row in manifest.rows()] == ["a", "b", "c"]
    assert manifest.forget_failures() == 0


def test_a_refused_command_leaves_a_finished_preparation_finished(tmp_path: Path):
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    write_h264(videos / "a.mp4", 40)
    assert prepare(videos, out, PREPARE)
    with pytest.raises(StageError):
        prepare_part(videos, out, replace(PREPARE, crf=30), "select", Part())
    assert not prepare(videos, out, PREPARE)
    with pytest.raises(MediaError, match="no such folder"):
        prepare_part(tmp_path / "elsewhere", out, PREPARE, "samples", Part())


def test_rows_say_what_they_came_from(prepared: Path):
    records = [json.loads(line) for line in (prepared / "inventory.jsonl").read_text().splitlines()]
    names = ["short.mp4", "street view.v2.mp4", *(f"train-{n:06d}.mp4" for n in range(4))]
    assert [(row["kind"], row["path"]) for row in records] == [("video", name) for name in names]
    plan = list(Manifest(prepared, "plan").rows())
    assert [row["name"] for row in plan] == names
