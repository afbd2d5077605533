"""What a user installs: the wheel, in a fresh environment, away from the checkout; and its native
code under the sanitizers."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.helpers.world import ROOT, environment, succeed

pytestmark = pytest.mark.full
# One instruction set: which one is chosen runs before the sanitizer is ready.
SANITIZE = (
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g -DOVTRAIN_ONE_TARGET"
)
KERNELS_UNDER_TEST = """
import importlib, importlib.util, sys
library, package, user, *words = sys.argv[1:]
spec = importlib.util.spec_from_file_location(f"{package}._native", library)
sys.modules[spec.name] = native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
assert importlib.import_module(user)._native is native
import pytest
sys.exit(pytest.main(["-s", "-p", "no:cacheprovider", *words]))
"""


def build(folder: Path, *settings: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    options = [f"--config-settings={setting}" for setting in settings]
    succeed(run([*command, *options, str(ROOT)], environment()))
    (found,) = folder.glob("ovtrain-*.whl")
    return found


def run(
    command: list[str], env: dict[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=590, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(folder)
    venv.create(folder / "env")
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {"ovtrain", "launch", "data_pipelines", "clustering"}
    about = wheel.name.split("-cp")[0] + ".dist-info"
    assert {name.split("/")[0] for name in names} == {*rooms, about}
    report = "ovtrain/observability/report/"
    assert {f"{report}charts.js", f"{report}page.css"} <= set(names)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install"]
    succeed(run([*pip, "--quiet", "--no-deps", str(wheel)], environment()))
    # A path alone: the checkout's own editable install is not followed from here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env/bin"


def ovtrain(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return run([str(installed / "ovtrain"), *words], bare, cwd)


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path):
    code = "import ovtrain, launch, ovtrain.codec._native as n; print(ovtrain.__file__, n.__file__)"
    shown = succeed(run([str(installed / "python"), "-c", code], {"PATH": "/usr/bin"}, tmp_path))
    assert shown.count(str(installed.parent)) == 2


def test_the_wheel_checks_a_shipped_recipe(installed: Path, tmp_path: Path):
    words = ("train", "demo/stage2", "--dry-run", "--allow-missing-data")
    assert "preflight    config sound" in succeed(ovtrain(installed, tmp_path, *words))
    refused = ovtrain(installed, tmp_path, "train", "demo/stage2", "--dry-run")
    assert refused.returncode == 2
    assert "no shard manifest here" in refused.stderr


def test_the_wheel_runs_the_demo_on_own_videos_and_names_what_it_skips(
    installed: Path, own_videos: Path, tmp_path: Path
):
    words = ["demo", "--videos", str(own_videos), "--out", "out", "nproc=2"]
    words += ["stage1_set=[run.steps=2,run.checkpoint_every=2]"]
    words += ["stage2_set=[run.steps=2,run.checkpoint_every=2]"]
    shown = " ".join(succeed(ovtrain(installed, tmp_path, *words)).split())
    assert "Probe skipped: the given videos have no classes" in shown
    assert "Skipped files: 4" in shown
    for name in ("noise.mp4: unreadable", "notes.txt: no media suffix", "cut.mp4: unreadable"):
        assert name in shown
    assert "gone.mkv: not a regular file" in shown
    assert (tmp_path / "out/report.html").stat().st_size > 100_000


@pytest.fixture(scope="module")
def own_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six readable videos of two codecs, and four files that are none."""
    folder = tmp_path_factory.mktemp("own")
    code = "import sys; from data_pipelines.synthetic import main; sys.exit(main(sys.argv[1:]))"
    words = ["--out", str(folder), "--train-clips", "5", "--heldout-clips", "0"]
    succeed(run([sys.executable, "-c", code, *words], environment()))
    clips = sorted((folder / "train").glob("*.mp4"))
    assert len(clips) == 5
    from tests.unit.data_pipelines.conftest import write_h264

    write_h264(folder / "train" / "phone.mkv", frames=70)
    (folder / "train" / "cut.mp4").write_bytes(clips[0].read_bytes()[:-4000])
    (folder / "train" / "noise.mp4").write_bytes(bytes(range(256)) * 16)
    (folder / "train" / "notes.txt").write_text("not a video")
    (folder / "train" / "gone.mkv").symlink_to(folder / "nowhere")
    return folder / "train"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    wheel = build(folder, f"cmake.args=-DCMAKE_CXX_FLAGS={SANITIZE}", "cmake.build-type=Debug")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


SANITIZED_TESTS = {
    "ovtrain.codec": (
        "kernels",
        "codec/test_kernels",
        "codec/test_energy",
        "codec/test_hevc_oracle",
    ),
    "ovtrain.data": ("pixels", "data/test_pixels"),
    "ovtrain.ops": ("class_kernels", "ops/test_class_kernels", "optim/test_sparse_rows"),
    "data_pipelines": (
        "dedup.components",
        "data_pipelines/test_dedup_components",
        "data_pipelines/test_dedup_near",
    ),
}
"""Package of an extension: the module in it that uses the extension, tests."""


@pytest.mark.parametrize("package", list(SANITIZED_TESTS))
def test_native_code_is_clean_under_the_sanitizers(sanitized: Path, package: str):
    (library,) = (str(path) for path in (sanitized / package.replace(".", "/")).glob("_native*"))
    user, *tests = SANITIZED_TESTS[package]
    assert b"__asan_report" in Path(library).read_bytes()
    # libstdc++ as well: the sanitizer looks for its throw before an extension could load it.
    preload = [
        subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    # Python itself never frees all it took; what is looked for is use out of bounds.
    env = environment() | {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", KERNELS_UNDER_TEST, library, package, f"{package}.{user}"]
    command += [f"tests/unit/{test}.py" for test in tests]
    command += ["-k", "native"] if package == "ovtrain.ops" else []
    assert "passed" in succeed(run(command, env))
