"""The command line: h5ad in, h5ad out, one line for every error."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from helpers import assert_only_added, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import _atomic, _cli, _saved
from scanpy_cnnimpute._anndata import files

if TYPE_CHECKING:
    from collections.abc import Sequence

GAMMA_NORMAL = ["--model", "gamma_normal"]
QUICK = ["--preset", "paper", "--n-targets", "16", "--max-epochs", "2", "--quiet"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.h5ad"
    simulate().write_h5ad(path)
    return path


def error_of(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert _cli.main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("scanpy-cnnimpute: error: ")
    return lines[0]


def test_dropout_impute_evaluate(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probable, imputed, table = (tmp_path / name for name in ("p.h5ad", "i.h5ad", "t.csv"))
    assert _cli.main(["dropout", str(source), str(probable), "--cluster-key", "type", *GAMMA_NORMAL, "--quiet"]) == 0
    assert _cli.main(["impute", str(probable), str(imputed), *QUICK]) == 0
    capsys.readouterr()
    evaluate = ["evaluate", str(imputed), "--label-key", "type", "--layers", "X", "cnn_imputed", "--csv", str(table)]
    assert _cli.main([*evaluate, "--method", "kmeans", "--n-clusters", "2", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "layer:cnn_imputed" in printed
    assert pd.read_csv(table, index_col=0).index.tolist() == ["X", "layer:cnn_imputed"]

    expected = simulate()
    scnn.pp.dropout_prob(expected, model="gamma_normal", cluster_key="type")
    scnn.pp.cnn_impute(expected, preset="paper", n_targets=16, max_epochs=2)
    result = ad.read_h5ad(imputed)
    np.testing.assert_array_equal(result.layers["dropout_prob"], expected.layers["dropout_prob"])
    np.testing.assert_array_equal(result.layers["cnn_imputed"].toarray(), expected.layers["cnn_imputed"].toarray())
    added = {("layers", "cnn_imputed"), ("uns", "cnn_imputed")}
    assert_only_added(ad.read_h5ad(probable), result, added)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.h5ad", "in.h5ad", "p.h5ad", "t.csv"]


def test_capture_efficiency_is_a_number_or_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = simulate()
    adata.obs["recovered"] = 0.25
    adata.write_h5ad(tmp_path / "in.h5ad")
    layers = []
    for value in ("0.25", "recovered"):
        out = tmp_path / f"{value}.h5ad"
        command = ["dropout", str(tmp_path / "in.h5ad"), str(out), "--cluster-key", "type", "--quiet"]
        assert _cli.main([*command, "--capture-efficiency", value]) == 0
        layers.append(ad.read_h5ad(out).layers["dropout_prob"])
    np.testing.assert_array_equal(*layers)
    line = error_of(capsys, *command[:2], tmp_path / "no.h5ad", *command[3:], "--capture-efficiency", "2")
    assert "capture_efficiency=2.0 is not allowed" in line


def test_zarr_in_and_out(source: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "a.zarr", tmp_path / "b.zarr"
    ad.read_h5ad(source).write_zarr(store)
    arguments = ["dropout", str(store), str(out), "--cluster-key", "type", "--quiet"]
    assert _cli.main(arguments) == 0
    assert _cli.main([*arguments, "--force"]) == 0
    assert ad.read_zarr(out).layers["dropout_prob"].shape == (60, 50)


def test_an_existing_output_needs_force(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.h5ad"
    shutil.copy(source, output)
    assert "Pass --force" in error_of(capsys, "dropout", source, output, "--cluster-key", "type")
    assert output.read_bytes() == source.read_bytes()
    assert _cli.main(["dropout", str(source), str(output), "--cluster-key", "type", "--force", "--quiet"]) == 0
    assert "dropout_prob" in ad.read_h5ad(output).layers


def test_input_may_be_the_output(source: Path) -> None:
    assert _cli.main(["dropout", str(source), str(source), "--cluster-key", "type", "--force", "--quiet"]) == 0
    assert "dropout_prob" in ad.read_h5ad(source).layers


def test_a_failed_write_leaves_the_old_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.h5ad"
    shutil.copy(source, output)
    content = output.read_bytes()

    def fails(self: Any, path: Path, **_: Any) -> None:
        Path(path).write_text("half")
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(ad.AnnData, "write_h5ad", fails)
    assert "No space left" in error_of(capsys, "dropout", source, output, "--cluster-key", "type", "--force", "--quiet")
    assert output.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_output_may_be_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "link.h5ad", tmp_path / "store" / "real.h5ad"
    link.symlink_to(target)
    for _ in range(2):
        assert _cli.main(["dropout", str(source), str(link), "--cluster-key", "type", "--force", "--quiet"]) == 0
    assert link.is_symlink()
    assert "dropout_prob" in ad.read_h5ad(target).layers
    assert [path.name for path in target.parent.iterdir()] == ["real.h5ad"]


def test_a_folder_that_cannot_be_written_to_is_found_out_first(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_atomic, "lock", refuse)
    monkeypatch.setattr(files, "read", lambda path: pytest.fail("read before the output was checked"))
    assert "cannot be written to (Permission denied)" in error_of(capsys, "dropout", source, tmp_path / "out.h5ad")


def test_a_failed_rename_keeps_the_old_zarr(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata, store = ad.read_h5ad(source), tmp_path / "a.zarr"
    adata.write_zarr(store)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"), files.replacing(store, force=True) as new:
        files.write(adata, new, store)
    assert ad.read_zarr(store).shape == adata.shape
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "in.h5ad"]


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr", "out.csv"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "other"])
def test_force_replaces_only_files_of_its_own_kind(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    output = tmp_path / name
    if kind == "folder" or (kind == "other" and name != "out.zarr"):
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
    elif kind == "pipe":
        os.mkfifo(output)
    else:  # a zarr group that is no AnnData
        output.mkdir()
        (output / "zarr.json").write_text('{"attributes": {"title": "thesis"}}')
    before = sorted(path.name for path in tmp_path.rglob("*"))
    command = (
        ["evaluate", source, "--label-key", "type", "--layers", "X", "--csv", output]
        if name == "out.csv"
        else ["dropout", source, output, "--cluster-key", "type"]
    )
    line = error_of(capsys, *command, "--force", "--quiet")
    assert "and is not replaced, not even with --force. Choose another name or remove it." in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert output.is_fifo() == (kind == "pipe")


@pytest.mark.filterwarnings("ignore:zarr v3", "ignore:Consolidated metadata", "ignore:This setting will be removed")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_force_replaces_stores_of_both_formats(source: Path, tmp_path: Path, zarr_format: int) -> None:
    store = tmp_path / "a.zarr"
    adata = ad.read_h5ad(source)
    ad.settings.zarr_write_format, before = zarr_format, ad.settings.zarr_write_format
    try:
        adata.write_zarr(store)
    finally:
        ad.settings.zarr_write_format = before
    adata.obs["new"] = 1
    with files.replacing(store, force=True) as new:
        files.write(adata, new, store)
    assert "new" in ad.read_zarr(store).obs


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("step", range(3))
def test_an_interrupt_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, error: type[BaseException], before: bool, step: int
) -> None:
    target, n_calls = tmp_path / "target", 0

    def put(path: Path, text: str) -> None:
        if folder:
            path.mkdir()
            path = path / "content"
        path.write_text(text)

    def interrupted(self: Path, original: Any, place: Path) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == step + 1 and before:
            raise error
        result = original(self, place)
        if n_calls == step + 1:
            raise error
        return result

    put(target, "old")
    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(Path, name, functools.partialmethod(interrupted, getattr(Path, name)))
        failed = False
        try:
            with _atomic.replacing(target) as new:
                put(new, "new")
        except error:
            failed = True
    left = (target / "content" if folder else target).read_text()
    assert left in {"old", "new"}
    assert failed or left == "new"
    assert failed == (step < (2 if folder else 1))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_cannot_be_put_back_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "content").write_text("old")
    rename = Path.rename

    def fails(self: Path, place: Path) -> Path:
        if self != target:
            raise OSError(5, "Input/output error")
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"), _atomic.replacing(target) as new:
        new.mkdir()
    assert [path.read_text() for path in tmp_path.rglob("content")] == ["old"]


def test_a_saved_imputer_survives_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved.save(tmp_path / "m", {"version": "old"}, {}, overwrite=False)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _saved.save(tmp_path / "m", {"version": "new"}, {}, overwrite=True)
    assert _saved.load(tmp_path / "m")[0]["version"] == "old"
    _saved.save(tmp_path / "m", {"version": "new"}, {}, overwrite=True)
    assert _saved.load(tmp_path / "m")[0]["version"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_damaged_descriptions_of_imputers(tmp_path: Path) -> None:
    _saved.save(tmp_path / "m", {"preset": "default"}, {}, overwrite=False)
    for text, match in (
        ("3", "has format None"),
        ("{", "is damaged"),
        ("[]", "has format None"),
        ("{}", "has format None"),
    ):
        (tmp_path / "m" / "imputer.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            _saved.load(tmp_path / "m")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists"):
        _saved.save(tmp_path / "mine", {}, {}, overwrite=True)
    with pytest.raises(FileNotFoundError, match="holds no saved CNNImputer"):
        _saved.load(tmp_path / "mine")


def test_unreadable_input(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.h5ad"
    truncated, text = tmp_path / "truncated.h5ad", tmp_path / "text.h5ad"
    truncated.write_bytes(source.read_bytes()[:2000])
    text.write_text("gene,cell\n")
    for path in (truncated, text):
        assert "may be truncated or damaged" in error_of(capsys, "impute", path, output)
    assert "does not exist" in error_of(capsys, "impute", tmp_path / "no.h5ad", output)
    assert "must end in one of .h5ad, .zarr" in error_of(capsys, "impute", tmp_path / "a.csv", output)
    assert "must end in one of" in error_of(capsys, "impute", source, tmp_path / "out.csv")
    assert "the folder" in error_of(capsys, "impute", source, tmp_path / "no" / "out.h5ad")
    csv = tmp_path / "no" / "t.csv"
    assert "the folder" in error_of(capsys, "evaluate", source, "--label-key", "type", "--layers", "X", "--csv", csv)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\x89HDF\xff\xfe", "is no text file"), (b"\n \n", "names no gene"), (b"g1\nno\n", "1 of 2 names are no genes")],
)
def test_files_of_genes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    genes, output = tmp_path / "genes.txt", tmp_path / "out.h5ad"
    genes.write_bytes(content)
    assert said in error_of(capsys, "impute", source, output, "--genes", genes)
    genes.write_bytes(b"\xef\xbb\xbfg1\r\ng3")  # as spreadsheets on Windows write it
    arguments = ["impute", source, output, "--genes", genes, "--n-steps", "2", "--quiet"]
    assert _cli.main([str(each) for each in arguments]) == 0
    found = files.read(output)
    changed = (found.layers["cnn_imputed"] != found.X).toarray().any(axis=0)
    assert found.var_names[changed].tolist() == ["g1", "g3"]


def test_errors_of_the_functions_are_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.h5ad"
    line = error_of(capsys, "dropout", source, output, "--cluster-key", "leiden")
    assert line.endswith("cluster_key='leiden' is not in adata.obs. Available: ['type'].")
    assert "layer='x' is not in" in error_of(capsys, "impute", source, output, "--layer", "x")
    assert "threshold=7.0 is not allowed" in error_of(capsys, "impute", source, output, "--threshold", "7")

    def surprise(*_: Any, **__: Any) -> None:
        msg = "two\nlines"
        raise RuntimeError(msg)

    monkeypatch.setattr(files, "read", surprise)
    assert error_of(capsys, "dropout", source, output).endswith("RuntimeError: two lines")
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["nonesuch"], ["impute", "a.h5ad"], ["dropout", "a", "b", "--store", "tape"], ["evaluate", "a"]]
)
def test_errors_of_usage_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _cli.main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_mirror_the_keywords() -> None:
    import inspect

    parser = _cli._parser()
    commands = parser._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command, function in (("impute", scnn.pp.cnn_impute), ("dropout", scnn.pp.dropout_prob)):
        options = {action.dest: action for action in commands[command]._actions}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in {"adata", "copy", "verbose"} or (command, name) == ("impute", "mask_var"):  # --genes
                continue
            assert options[name].default == parameter.default
            assert options[name].help


def test_annotations_become_options() -> None:
    def function(
        adata: Any,
        *,
        model: str = "a",
        mask_var: str | np.ndarray | None = None,
        layers: Sequence[str] = (),
        efficiency: float | str | None = None,
        choice: Literal["x", "y"] = "x",
        n: int | None = None,
        flag: bool = False,
        copy: bool = False,
    ) -> None:
        """Do it.

        Parameters
        ----------
        adata
            Data.
        model, mask_var, layers, efficiency, choice, n, flag
            A text of 5 %.
        copy
            Copy.

        Returns
        -------
        Nothing.
        """

    parser = argparse.ArgumentParser()
    _cli._mirror(parser, function)
    options = {action.dest: action for action in parser._actions}
    assert "copy" not in options
    assert options["mask_var"].metavar == "KEY"
    assert options["model"].metavar == "MODEL"
    assert "A text of 5 %." in parser.format_help()
    arguments = "--model b --mask-var hv --layers X y --efficiency 0.5 --choice y --n 3 --flag"
    found = vars(parser.parse_args(arguments.split()))
    expected = {"model": "b", "mask_var": "hv", "layers": ["X", "y"], "efficiency": 0.5, "choice": "y", "n": 3}
    assert found == {**expected, "flag": True}
    assert parser.parse_args([]).mask_var is None


def test_warnings_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = simulate()
    adata.X.data = adata.X.data * np.float32(10) + np.float32(0.5)
    adata.write_h5ad(tmp_path / "in.h5ad")
    paths = [str(tmp_path / "in.h5ad"), str(tmp_path / "out.h5ad")]
    assert _cli.main(["dropout", *paths, "--cluster-key", "type", "--quiet"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: adata.X: 100% of the non-zeros")


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    full = scnn.datasets.five_cell_lines()
    monkeypatch.setattr(scnn.datasets, "five_cell_lines", full[:, :600].copy)
    output = tmp_path / "demo.h5ad"
    assert _cli.main(["demo", str(output), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "before (X)" in printed
    assert "after (layer cnn_imputed)" in printed
    assert {"dropout_prob", "cnn_imputed"} <= set(files.read(output).layers)


def test_training_leaves_stderr_to_us(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scanpy_cnnimpute._cli", "impute", source, tmp_path / "out.h5ad"]
    run = subprocess.run(
        [*map(str, command), "--cluster-key", "type", "--n-steps", "2", "--quiet"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stderr == ""
    assert run.stdout == ""


def test_scanpy_finds_the_command(source: Path, tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    run = subprocess.run(
        [scripts / "scanpy", "cnnimpute", "dropout", source, tmp_path / "out.h5ad", "--cluster-key", "type"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(scripts), "HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert "pp.dropout_prob: added" in run.stderr
    assert (tmp_path / "out.h5ad").exists()
