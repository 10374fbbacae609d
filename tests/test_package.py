"""The package as such: what importing it costs, what its functions look like, its data and its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.presets import ConditionalSettings, DefaultSettings, PaperSettings


def functions(*modules: Any) -> list[Any]:
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return [function for function in found if inspect.isfunction(function)]


PUBLIC = functions(scnn.pp, scnn.tl, scnn.get, scnn.pl, scnn.datasets, scnn.metrics)
ON_ADATA = functions(scnn.pp, scnn.tl, scnn.get, scnn.pl)

TUTORIALS = Path(__file__).parents[1] / "tutorials"
HEAVY = ("keras", "tensorflow", "torch", "jax", "umap", "matplotlib", "sklearn", "igraph", "leidenalg", "dask", "tqdm")
IMPORTS = """
import json, sys
import scanpy
before = set(sys.modules)
import scanpy_cnnimpute
for name in scanpy_cnnimpute.__all__:
    getattr(scanpy_cnnimpute, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_is_light() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True)
    added = json.loads(run.stdout.splitlines()[-1])
    assert [name for name in added if name.partition(".")[0] in HEAVY] == []


def test_import_installs_no_handler_and_no_backend() -> None:
    code = (
        "import os, logging, scanpy_cnnimpute;"
        "print(len(logging.getLogger('scanpy_cnnimpute').handlers), os.environ.get('KERAS_BACKEND'))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["0", "None"]


SETTINGS: dict[str, Any] = {
    "default": DefaultSettings(),
    "conditional": ConditionalSettings(),
    "paper": PaperSettings(),
}


def test_documented_settings_are_those_of_the_presets() -> None:
    doc = inspect.getdoc(scnn.pp.cnn_impute) or ""
    only = re.findall(r"^(\w+)\n {4}(Default|Conditional|Paper) only: [^()]*\(([\d.]+)\)\.$", doc, flags=re.MULTILINE)
    told = [(name, preset.lower(), float(value)) for name, preset, value in only]
    told += [
        ("learning_rate", preset, float(value)) for preset, value in re.findall(r"\b(default|paper): (\de-\d)", doc)
    ]
    # The default's number of steps, two of the conditional estimate alone, six of the paper's, both learning rates.
    assert len(told) == 11
    for name, preset, value in told:
        assert SETTINGS[preset].as_dict()[name] == value, name
    (high, low) = re.findall(r"\(conditional and paper: ([\d.]+); else ([\d.]+)\)", doc)[0]
    assert {name: values.threshold for name, values in SETTINGS.items()} == {
        "default": float(low),
        "conditional": float(high),
        "paper": float(high),
    }
    assert SETTINGS["paper"].log is True
    assert "Paper only: train on log1p(counts) (``True``) or" in doc
    n_top = re.findall(r"^n_top\n {4}[^()]*\((\d+)\)\.$", doc, flags=re.MULTILINE)
    assert {values.n_top for values in SETTINGS.values()} == {int(n_top[0])}


@pytest.mark.parametrize("function", ON_ADATA, ids=lambda function: function.__qualname__)
def test_adata_first_everything_else_by_keyword(function: Any) -> None:
    first, *others = inspect.signature(function).parameters.values()
    assert first.name == "adata"
    if others and others[0].name == "groupby" and others[0].default is inspect.Parameter.empty:
        # As in Scanpy's function of this name.
        others = others[1:] if function.__name__ in {"rank_genes_groups", "eval_false_signals"} else others
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)
    if "copy" in {parameter.name for parameter in others}:
        assert inspect.signature(function).return_annotation == "AnnData | None"


@pytest.mark.parametrize("function", [*PUBLIC, scnn.CNNImputer], ids=lambda function: function.__qualname__)
def test_docstrings_describe_every_parameter(function: Any) -> None:
    text = inspect.getdoc(function)
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    for heading in ("Parameters",) * bool(parameters) + ("Examples",):
        assert f"{heading}\n{'-' * len(heading)}" in text
    for name in parameters:
        lines = [line for line in text.splitlines() if name in line.split(", ") or line == name]
        assert lines, f"{name} is not described"


def test_copy_returns_and_leaves_alone(adata: AnnData) -> None:
    for call in (
        lambda: scnn.tl.cluster(adata, copy=True),
        lambda: scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", copy=True),
        lambda: scnn.pp.cnn_impute(adata, cluster_key="type", n_steps=2, copy=True),
    ):
        before = set(adata.uns) | set(adata.obs) | set(adata.layers)
        copied = call()
        assert isinstance(copied, AnnData)
        assert set(adata.uns) | set(adata.obs) | set(adata.layers) == before
        assert (set(copied.uns) | set(copied.obs) | set(copied.layers)) > before


def test_logging_says_what_was_written(adata: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    assert "pp.dropout_prob: added " in caplog.text
    assert "varm['dropout_prob_rate']" in caplog.text
    assert "layers['dropout_prob']" in caplog.text


def modules() -> list[str]:
    found = pkgutil.walk_packages(scnn.__path__, "scanpy_cnnimpute.")
    return ["scanpy_cnnimpute", *(module.name for module in found)]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.name)
def test_tutorials(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # The command that this environment installed.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    stored = [cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code"]
    assert any(stored)
    assert not any(output.get("name") == "stderr" for outputs in stored for output in outputs)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_every_public_function_has_an_example_that_runs() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for function in [*PUBLIC, scnn.CNNImputer]:
        assert any(test.examples for test in finder.find(function)), function.__qualname__


# Packages that work on arrays, and what none of their modules may import.
ADAPTERS = {"_anndata", "get", "pl", "pp", "tl"}
FORBIDDEN: dict[str, set[str]] = {
    "clustering": {"dropout", "imputation", "metrics"},
    "differential": {"clustering", "metrics"},
    "dropout": {"imputation", "presets"},
    "imputation": set(),
    "imputation.default": {"imputation.paper"},
    "imputation.paper": {"imputation.default"},
    "metrics": {"clustering", "dropout", "imputation"},
}


def imported(module: Any) -> set[str]:
    """Everything that the source of a module imports, by full name, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("core", FORBIDDEN)
def test_cores_know_no_anndata(core: str) -> None:
    """The arrow runs one way: adapters to imputation, to dropout, to kernels; presets do not know each other."""
    package = importlib.import_module(f"scanpy_cnnimpute.{core}")
    inside = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    assert inside
    forbidden = {f"scanpy_cnnimpute.{name}" for name in ADAPTERS | FORBIDDEN[core]} | {"anndata", "scanpy"}
    for name in [package.__name__, *inside]:
        names = imported(importlib.import_module(name))
        assert not {each for each in names for other in forbidden if each == other or each.startswith(f"{other}.")}, (
            name
        )


def test_bundled_data() -> None:
    adata = scnn.datasets.five_cell_lines()
    assert adata.shape == (297, 3500)
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.X.data.min() == 1
    assert adata.obs["cell_line"].value_counts().to_dict() == {
        "A549": 103, "H838": 51, "H1975": 50, "H2228": 50, "HCC827": 43
    }  # fmt: skip
    assert "MIT" in adata.uns["source"]
    assert adata.var_names.is_unique
    assert isinstance(adata, ad.AnnData)
