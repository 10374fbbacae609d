"""Files of the repository say the same: versions, addresses, commands."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="the source distribution has no such files")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TEST_COMMAND = "pip install -U pip && pip install --group test . && pytest --slow"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))["project"]


def test_versions_and_metadata_agree(project: dict[str, Any]) -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    codemeta = json.loads(text("codemeta.json"))
    entry = yaml.safe_load(text("docs/scverse_ecosystem.yaml"))
    assert project["version"] == citation["version"] == codemeta["version"] == entry["version"].removeprefix("v")
    assert project["name"] == citation["title"] == codemeta["name"] == entry["name"] == entry["install"]["pypi"]
    assert project["description"] == citation["abstract"] == codemeta["description"]
    assert project["keywords"] == citation["keywords"] == codemeta["keywords"]
    assert project["license"] == citation["license"] == codemeta["license"].rpartition("/")[2] == entry["license"]
    home = project["urls"]["Homepage"]
    assert home == citation["repository-code"] == codemeta["codeRepository"] == entry["project_home"]
    documentation = project["urls"]["Documentation"]
    assert documentation == citation["url"] == codemeta["softwareHelp"] == entry["documentation_home"]
    (author,) = project["authors"]
    assert author["name"] == citation["authors"][0]["name"] == codemeta["author"][0]["name"]
    doi = citation["preferred-citation"]["doi"]
    assert codemeta["referencePublication"]["identifier"] == f"https://doi.org/{doi}"
    assert entry["publications"] == [doi]
    assert f"https://doi.org/{doi}" in text("README.md")


def test_ecosystem_entry_has_what_the_registry_asks_for() -> None:
    """Required fields and kinds of its schema, version 2.0."""
    entry = yaml.safe_load(text("docs/scverse_ecosystem.yaml"))
    required = {"name", "description", "project_home", "documentation_home", "install", "license", "tags", "version"}
    assert required | {"category", "contact"} <= set(entry)
    assert entry["category"] == "ecosystem"
    assert entry["test_command"].strip() == TEST_COMMAND
    for name in ("tags", "contact"):
        assert entry[name]
        assert len(set(entry[name])) == len(entry[name])


def test_readme_is_short_and_starts_with_two_commands() -> None:
    readme = text("README.md")
    assert len(readme.splitlines()) <= 80
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == ["pip install . && scanpy-cnnimpute demo", TEST_COMMAND]
    assert TEST_COMMAND in text(".ci/run").splitlines()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(path: Path) -> None:
    """Actions are pinned to commits; only the job that needs it gets a token."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        if "id-token" in job.get("permissions", {}):
            assert name in {"coverage", "publish"}
        for step in job["steps"]:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}"))
    # In words beside the commit, for readers and for updates.
    assert not re.search(r"uses: \S+$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form["contact_links"]
        return
    assert {"name", "description", "body"} <= set(form)
    identities = [field["id"] for field in form["body"]]
    assert len(set(identities)) == len(identities)
    assert any(field.get("validations", {}).get("required") for field in form["body"])
