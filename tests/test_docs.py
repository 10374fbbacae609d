"""The documentation: its examples print what they show, and nothing is missing from its lists."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._cli import _parser
from scanpy_cnnimpute.dropout.gamma_normal.model import PARAMETERS
from scanpy_cnnimpute.dropout.gamma_normal.model import STATUSES as MIXTURE_STATUSES
from scanpy_cnnimpute.imputation import STATUSES

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the source distribution has no documentation")
EXAMPLES = [path for path in sorted(DOCS.glob("*.md")) if ">>> " in path.read_text()]


@pytest.fixture
def check_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_api", DOCS / "check_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_print_what_they_show(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    blocks = re.findall(r"^```pycon\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, path.name, str(path), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_every_public_name_has_a_page(check_api: ModuleType) -> None:
    assert check_api.missing_from_pages() == []
    assert check_api.unknown_on_pages() == []


def test_a_name_without_a_page_is_found(check_api: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scnn.pp, "new", lambda: None, raising=False)
    monkeypatch.setattr(scnn.pp, "__all__", [*scnn.pp.__all__, "new"])
    assert check_api.missing_from_pages() == ["pp.new"]
    assert check_api.main() == 1


def test_gallery_has_every_plot() -> None:
    text = (DOCS / "gallery.md").read_text()
    shown = re.findall(r"^### \{func\}`pl\.(\w+) ", text, flags=re.MULTILINE)
    assert sorted(shown) == sorted(scnn.pl.__all__)
    for figure in re.findall(r"figures/(\w+\.png)", text):
        assert (DOCS / "figures" / figure).is_file()


def test_command_line_page_has_every_command() -> None:
    listed = re.findall(r"^\.\. command:: (\w+)$", (DOCS / "command_line.md").read_text(), flags=re.MULTILINE)
    choices = next(action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    assert listed == list(choices)


def test_statuses_are_those_of_the_package() -> None:
    text = (DOCS / "api" / "models.md").read_text()
    for name in (*STATUSES, *MIXTURE_STATUSES, *PARAMETERS):
        assert f'``"{name}"``' in text
