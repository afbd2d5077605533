"""Self-contained source: what is copied, what stays an import, and what is refused."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

from ovtrain.export import remote_code
from ovtrain.export.hf import remote_code as exported_code
from ovtrain.export.remote_code import self_contained


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``mine`` whose modules the generator is told to inline."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(remote_code, "OWN", "mine")
    yield tmp_path / "mine"
    for name in [n for n in sys.modules if n.partition(".")[0] == "mine"]:
        del sys.modules[name]


def write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()


def test_what_is_needed_is_copied_in_an_order_that_runs(package: Path):
    write(
        package,
        top='"""Top."""\nfrom math import sqrt\nfrom mine.low import Base, twice\n\n\n'
        "class Top(Base):\n    root = sqrt(FOUR) if False else 2\n\n"
        "    def value(self):\n        return twice(self.root) + self.one()\n\n\n"
        "def unused():\n    return twice(1)\n",
        low="import os\nfrom functools import cache\n\nONE: int = 1\n\n\n"
        "class Base:\n    def one(self):\n        return ONE\n\n\n"
        "@cache\ndef twice(x):\n    return 2 * x\n\n\ndef never():\n    return os.sep\n",
    )
    text = self_contained("mine.top", "Top")
    space: dict = {}
    exec(compile(text, "generated", "exec"), space)
    assert space["Top"]().value() == 5
    assert "mine" not in text
    assert "never" not in text
    assert "unused" not in text
    assert "import os" not in text
    assert text.index("class Base") < text.index("class Top")
    assert ast.get_docstring(ast.parse(text)) == "Top."


def test_a_replaced_module_is_imported(package: Path):
    write(package, top="from mine.low import A\n\n\ndef f():\n    return A\n", low="A = 1\n")
    text = self_contained("mine.top", "f", {"mine.low": ".beside"})
    assert "from .beside import A" in text
    assert "A = 1" not in text


def test_two_definitions_of_one_name_are_refused(package: Path):
    write(
        package,
        top="from mine.low import g\n\n\ndef h():\n    return 1\n\n\n"
        "def f():\n    return g() + h()\n",
        low="def h():\n    return 2\n\n\ndef g():\n    return h()\n",
    )
    with pytest.raises(AssertionError, match="h is defined twice"):
        self_contained("mine.top", "f")


def test_exported_files_import_torch_transformers_and_the_standard_library_only():
    """What transformers itself looks at before it runs remote code."""
    for text in exported_code().values():
        tree = ast.parse(text)
        guarded = {n for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in guarded:
                found = [(node.module or "").partition(".")[0]] if not node.level else []
            elif isinstance(node, ast.Import):
                found = [alias.name.partition(".")[0] for alias in node.names]
            else:
                continue
            assert set(found) <= {"torch", "transformers", *sys.stdlib_module_names}, found
