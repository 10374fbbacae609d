"""From file to file, block by block: what memory gives, however often a run is interrupted."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import _cli, _counts, _finished, _streaming
from scanpy_cnnimpute._finished import FinishedParts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

zarr = pytest.importorskip("zarr")

N_CELLS, N_GENES = 90, 50
ROWS = 10  # of a block
FAST = ["--n-steps", "3", "--quiet"]
STREAM = ["--memory-limit", "1KB"]


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Any:
    """Nine blocks; processes that are started get them by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_counts, "BLOCK_ENTRIES", ROWS * N_GENES)
        yield


@pytest.fixture(scope="module")
def whole() -> ad.AnnData:
    """Data with something in every place of an AnnData."""
    adata = simulate(N_CELLS, N_GENES)
    adata.var["chosen"] = np.arange(N_GENES) % 2 == 0
    adata.obs["missing"] = pd.Categorical([None, "a", "b"] * (N_CELLS // 3))
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["columns"] = sp.csc_matrix(adata.X)
    adata.obsp["near"] = sp.random(N_CELLS, N_CELLS, 0.1, format="csr", random_state=0)
    adata.varp["near"] = np.eye(N_GENES)
    adata.obsm["table"] = pd.DataFrame({"a": np.arange(N_CELLS)}, index=adata.obs_names)
    adata.raw = adata[:, :20]
    return adata


@pytest.fixture(scope="module")
def inputs(whole: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    whole.write_h5ad(folder / "in.h5ad")
    whole.write_zarr(folder / "in.zarr")
    return folder


def run(*arguments: Any, code: int = 0) -> None:
    assert _cli.main([str(argument) for argument in arguments]) == code


def read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def assert_same(found: ad.AnnData, expected: ad.AnnData, tolerance: float = 1e-5) -> None:
    """Everything of the two is equal, imputed layers up to the batches of the network."""
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    for name in ("obsm", "varm", "obsp", "varp"):
        one, other = getattr(found, name), getattr(expected, name)
        assert set(one) == set(other)
        for key in other:
            np.testing.assert_array_equal(dense(one[key]), dense(other[key]), err_msg=f"{name} {key}")
    np.testing.assert_array_equal(dense(found.X), dense(expected.X))
    np.testing.assert_array_equal(dense(found.raw.X), dense(expected.raw.X))
    layers = [{name for name in data.layers if name is not None} for data in (found, expected)]
    assert layers[0] == layers[1]
    for name in layers[0]:
        assert type(found.layers[name]) is type(expected.layers[name])
        kind = {"rtol": tolerance} if name.startswith("cnn_") else {"rtol": 0}
        np.testing.assert_allclose(dense(found.layers[name]), dense(expected.layers[name]), err_msg=name, **kind)
    assert set(found.uns) == set(expected.uns)


CASES: dict[str, list[str]] = {
    "zeros": [],
    "deviations": ["--return-std"],
    "all": ["--entries", "all"],
    "conditional": ["--estimate", "conditional"],
    "layer": ["--layer", "dense"],
    "column": ["--genes", "chosen"],
    "params": ["--store", "params"],
    "float16": ["--dtype", "float16"],
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_memory_gives(inputs: Path, tmp_path: Path, case: str) -> None:
    source = inputs / "in.h5ad"
    run("impute", source, tmp_path / "memory.h5ad", *FAST, *CASES[case])
    names = ("h5ad", "zarr") if case == "zeros" else ("zarr",)
    for name in names:
        out = tmp_path / f"out.{name}"
        run("impute", inputs / f"in.{'zarr' if name == 'h5ad' else 'h5ad'}", out, *FAST, *CASES[case], *STREAM)
        # float16 rounds to 11 bits.
        assert_same(read(out), read(tmp_path / "memory.h5ad"), 1e-3 if case == "float16" else 1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"memory.h5ad", *(f"out.{name}" for name in names)}


def test_the_stored_imputer_of_a_streamed_run_is_complete(inputs: Path, tmp_path: Path) -> None:
    run("impute", inputs / "in.h5ad", tmp_path / "out.h5ad", *FAST, *STREAM, "--return-std")
    found = read(tmp_path / "out.h5ad")
    # The network's batches differ: sums of float32 in another order.
    np.testing.assert_allclose(scnn.get.cnn_imputed(found), dense(found.layers["cnn_imputed"]), rtol=1e-5)
    assert found.uns["cnn_imputed"]["params"]["std_units"] == "log1p(CP10k)"
    # A second run replaces what the first wrote.
    run("impute", tmp_path / "out.h5ad", tmp_path / "again.h5ad", *FAST, *STREAM, "--n-steps", "4")
    again = read(tmp_path / "again.h5ad")
    assert "cnn_imputed_std" not in again.layers
    assert again.uns["cnn_imputed"]["params"]["n_steps"] == 4


def test_own_probabilities_are_read_by_blocks(inputs: Path, tmp_path: Path, whole: ad.AnnData) -> None:
    adata = whole.copy()
    adata.layers["mine"] = np.random.default_rng(0).uniform(size=whole.shape).astype(np.float32)
    adata.write_h5ad(tmp_path / "in.h5ad")
    arguments = [*FAST, "--dropout-key", "mine"]
    run("impute", tmp_path / "in.h5ad", tmp_path / "memory.h5ad", *arguments)
    run("impute", tmp_path / "in.h5ad", tmp_path / "out.h5ad", *arguments, *STREAM)
    assert_same(read(tmp_path / "out.h5ad"), read(tmp_path / "memory.h5ad"))


def test_genes_of_a_file(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "genes.txt"
    names.write_text("g3\n\ng17\n")
    for name, more in (("memory.h5ad", []), ("out.h5ad", STREAM)):
        run("impute", inputs / "in.h5ad", tmp_path / name, *FAST, "--genes", names, *more)
        adata = read(tmp_path / name)
        changed = (dense(adata.layers["cnn_imputed"]) != dense(adata.X)).any(axis=0)
        assert set(adata.var_names[changed]) <= {"g3", "g17"}
        assert changed.any()
    names.write_text("g3\nnobody\n")
    capsys.readouterr()
    run("impute", inputs / "in.h5ad", tmp_path / "x.h5ad", *FAST, "--genes", names, code=1)
    assert "1 of 2 names are no genes of the input, such as ['nobody']" in capsys.readouterr().err
    run("impute", inputs / "in.h5ad", tmp_path / "x.h5ad", *FAST, "--genes", "nothing", code=1)
    assert "neither a column of var nor a file" in capsys.readouterr().err


def test_what_is_said_and_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source, out = inputs / "in.h5ad", tmp_path / "out.h5ad"
    run("impute", source, out, "--n-steps", "3", *STREAM)
    assert "read and written block by block" in caplog.text
    capsys.readouterr()
    run("impute", source, out, *FAST, *STREAM, code=1)
    assert "exists. Pass --force" in capsys.readouterr().err
    run("impute", source, out, *FAST, *STREAM, "--force", "--preset", "paper", code=1)
    assert "preset='paper' reads all counts at once" in capsys.readouterr().err
    large = simulate(N_CELLS, N_GENES)
    large.X[0, 0] = 3000
    large.write_h5ad(tmp_path / "large.h5ad")
    for more in ([], STREAM):
        run("impute", tmp_path / "large.h5ad", out, *FAST, "--force", "--dtype", "float16", *more, code=1)
        assert "The largest count is 3000; float16 holds whole numbers up to 2048" in capsys.readouterr().err
    columns = simulate(N_CELLS, N_GENES)
    columns.X = sp.csc_matrix(columns.X)
    columns.write_h5ad(tmp_path / "columns.h5ad")
    run("impute", tmp_path / "columns.h5ad", tmp_path / "x.h5ad", *FAST, *STREAM, code=1)
    assert "is a CSC matrix on disk, which cannot be read by cells" in capsys.readouterr().err
    run("impute", tmp_path / "columns.h5ad", tmp_path / "x.h5ad", *FAST)


@pytest.mark.parametrize("text", ["4GB", "4 GiB", "500M", "2e3", "many", "-1GB"])
def test_sizes(text: str) -> None:
    known = {"4GB": 4 * 10**9, "4 GiB": 2**32, "500M": 5 * 10**8}
    if text in known:
        assert _cli._bytes(text) == known[text]
    else:
        with pytest.raises(Exception, match="is no size"):
            _cli._bytes(text)


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_numbers_of_workers(inputs: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _cli.main(["impute", str(inputs / "in.h5ad"), str(tmp_path / "out.h5ad"), f"--workers={text}"])
    assert f"{text!r} is not allowed: a whole number from 1 on" in capsys.readouterr().err


def interrupted(
    inputs: Path, out: Path, after: int, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> list[int]:
    """Run until so many blocks are finished; returns what the run imputed."""
    blocks: list[int] = []
    layers = _streaming._Fit.layers

    def stops(self: Any, number: int) -> Any:
        if len(blocks) == after:
            raise error
        blocks.append(number)
        return layers(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(_streaming._Fit, "layers", stops)
        run("impute", inputs, out, *FAST, *STREAM, code=130 if isinstance(error, KeyboardInterrupt) else 1)
    return blocks


def test_an_interrupted_run_goes_on(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, out = inputs / "in.zarr", tmp_path / "out.zarr"
    run("impute", source, tmp_path / "whole.zarr", *FAST, *STREAM)
    assert interrupted(source, out, 4, monkeypatch, KeyboardInterrupt()) == [0, 1, 2, 3]
    folder = tmp_path / ".out.zarr.scanpy-cnnimpute"
    assert not out.exists()
    assert str(folder) in caplog.text
    assert interrupted(source, out, 2, monkeypatch, OSError(errno.ENOSPC, "No space left on device")) == [4, 5]
    assert "No space left on device" in capsys.readouterr().err
    caplog.clear()
    run("impute", source, out, "--n-steps", "3", *STREAM)
    assert "Going on from" in caplog.text
    assert "6 of 9 blocks are finished" in caplog.text
    assert_same(read(out), read(tmp_path / "whole.zarr"), 0)
    assert not folder.exists()


@pytest.mark.parametrize("change", ["input", "settings", "version", "restart"])
def test_old_blocks_are_never_met(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    shutil.copytree(inputs / "in.zarr", source)
    interrupted(source, out, 3, monkeypatch, KeyboardInterrupt())
    more: list[str] = []
    if change == "input":
        other = simulate(N_CELLS, N_GENES, seed=1)
        other.write_zarr(source)
    elif change == "settings":
        more = ["--threshold", "0.2"]
    elif change == "version":
        monkeypatch.setattr(scnn, "__version__", "9")
    else:
        more = ["--restart"]
    expected = tmp_path / "expected.zarr"
    run("impute", source, expected, *FAST, *STREAM, *more)
    blocks: list[int] = []
    layers = _streaming._Fit.layers
    monkeypatch.setattr(
        _streaming._Fit, "layers", lambda self, number: (blocks.append(number), layers(self, number))[1]
    )
    run("impute", source, out, *FAST, *STREAM, *more)
    assert blocks == list(range(9))
    np.testing.assert_array_equal(dense(read(out).layers["cnn_imputed"]), dense(read(expected).layers["cnn_imputed"]))


def test_a_damaged_block_is_imputed_again(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = inputs / "in.zarr", tmp_path / "out.zarr"
    interrupted(source, out, 6, monkeypatch, KeyboardInterrupt())
    block = tmp_path / ".out.zarr.scanpy-cnnimpute" / "block-000002.npz"
    block.write_bytes(block.read_bytes()[:100])
    run("impute", source, out, *FAST, *STREAM, code=1)
    run("impute", source, out, *FAST, *STREAM)
    assert out.exists()


def test_an_older_output_stays_until_the_new_one_is_complete(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = inputs / "in.zarr", tmp_path / "out.zarr"
    run("impute", source, out, *FAST, *STREAM)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(_streaming, "_write", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        run("impute", source, out, *FAST, *STREAM, "--force", "--n-steps", "4", code=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


PROGRAM = """
import sys
from scanpy_cnnimpute import _cli, _counts
_counts.BLOCK_ENTRIES = 500
sys.exit(_cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suffix", ["zarr", "h5ad"])
def test_kill_and_resume(inputs: Path, tmp_path: Path, suffix: str) -> None:
    """Killed at random moments, five times a format; what the last run writes is what an uninterrupted one writes."""
    source, out = inputs / f"in.{suffix}", tmp_path / f"out.{suffix}"
    run("impute", source, tmp_path / f"whole.{suffix}", *FAST, *STREAM)
    command = [sys.executable, "-c", PROGRAM, "impute", str(source), str(out), *FAST, *STREAM]
    started = time.perf_counter()
    subprocess.run([*command[:5], str(tmp_path / f"timed.{suffix}"), *FAST, *STREAM], check=True)
    seconds = time.perf_counter() - started
    chance = random.Random(suffix)
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            break
    if not out.exists():
        subprocess.run(command, check=True)
    assert_same(read(out), read(tmp_path / f"whole.{suffix}"), 0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"out.{suffix}", f"whole.{suffix}", f"timed.{suffix}"}


@pytest.mark.parametrize(
    ("suffix", "size"),
    # Full when the fitted model is written (some 300 kB), a block, or the output.
    [("zarr", "100k"), ("zarr", "350k"), ("h5ad", "100k"), ("h5ad", "350k"), ("h5ad", "500k")],
)
def test_a_full_disk_leaves_everything_as_it_was(inputs: Path, tmp_path: Path, suffix: str, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        (disk / "older.txt").write_bytes(b"older")
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            "impute",
            inputs / f"in.{suffix}",
            disk / f"new.{suffix}",
            *FAST,
            *STREAM,
        ]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        *kept, error = done.stderr.splitlines()
        assert error.startswith("scanpy-cnnimpute: error")
        assert str(disk) in error
        assert [line.partition(" in ")[0] for line in kept] == ["What is finished is kept"] * (size != "100k")
        assert len(list(disk.iterdir())) == 1 + len(kept)
        assert (disk / "older.txt").read_bytes() == b"older"
        assert not (disk / f"new.{suffix}").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_workers_give_the_same(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    run("impute", inputs / "in.zarr", tmp_path / "one.zarr", *FAST, *STREAM)
    # New processes have blocks of their own size.
    monkeypatch.setattr(_counts, "BLOCK_ENTRIES", 2**24)
    run("impute", inputs / "in.zarr", tmp_path / "two.zarr", *FAST, "--workers", "2")
    assert_same(read(tmp_path / "two.zarr"), read(tmp_path / "one.zarr"))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    parts = FinishedParts(tmp_path / "parts", {"a": 1})
    with pytest.raises(RuntimeError, match="Another process uses"):
        FinishedParts(tmp_path / "parts", {"a": 1})
    parts.close()
    FinishedParts(tmp_path / "parts", {"a": 1}).close()


def test_errors_while_a_part_is_written_keep_their_words(tmp_path: Path) -> None:
    part = tmp_path / "x.npz"
    with pytest.raises(OSError, match=r"^a damaged chunk$") as caught, _finished.writing(part):
        raise OSError("a damaged chunk")
    assert caught.value.filename is None
    with pytest.raises(OSError, match="full") as caught, _finished.writing(part):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(part)


def test_parts_are_whole_and_belong_to_a_key(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    parts = FinishedParts(folder, {"a": 1})
    parts.save("x.npz", {"values": np.arange(3)})
    (folder / f"{_finished.UNFINISHED}-1-y.npz").write_bytes(b"half")
    parts.close()
    parts = FinishedParts(folder, {"a": 1})
    np.testing.assert_array_equal(parts.load("x.npz")["values"], np.arange(3))  # type: ignore[index]
    assert "y.npz" not in parts
    assert parts.load("y.npz") is None
    parts.path("x.npz").write_bytes(b"damaged")
    assert parts.load("x.npz") is None
    parts.save("x.npz", {"values": np.arange(3)})
    parts.close()
    parts = FinishedParts(folder, {"a": 2})
    assert "x.npz" not in parts
    parts.remove()
    assert not folder.exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds other files, such as 'thesis\.txt'"):
        FinishedParts(tmp_path, {"a": 1})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


PAPER: dict[str, Any] = {"preset": "paper", "n_targets": 16, "max_epochs": 2, "verbose": False, "cluster_key": "type"}


def test_networks_of_the_paper_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanpy_cnnimpute.imputation.paper.imputer import PaperImputer

    folder, expected, adata = tmp_path / "networks", simulate(), simulate()
    scnn.pp.cnn_impute(expected, **PAPER)
    trained: list[int] = []
    train = PaperImputer._train

    def stops(self: Any, *arguments: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(1)
        return train(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PaperImputer, "_train", stops)
        with pytest.raises(KeyboardInterrupt):
            scnn.pp.cnn_impute(adata, **PAPER, checkpoint=folder)
    assert "cnn_imputed" not in adata.layers
    assert len(list(folder.glob("network-*.npz"))) == 3
    with monkeypatch.context() as patch:
        patch.setattr(PaperImputer, "_train", lambda *arguments: (trained.append(1), train(*arguments))[1])
        scnn.pp.cnn_impute(adata, **PAPER, checkpoint=folder)
    n_networks = len(expected.uns["cnn_imputed"]["history"].groupby(["cluster", "subset"]))
    assert len(trained) == n_networks
    np.testing.assert_array_equal(dense(adata.layers["cnn_imputed"]), dense(expected.layers["cnn_imputed"]))
    pd.testing.assert_frame_equal(adata.uns["cnn_imputed"]["history"], expected.uns["cnn_imputed"]["history"])
    # Other counts have other networks.
    other = simulate(seed=1)
    scnn.pp.cnn_impute(other, **PAPER, checkpoint=folder)
    assert len(list(folder.glob("network-*.npz"))) > n_networks
    with pytest.raises(ValueError, match=r"checkpoint=.* means nothing to preset='default'"):
        scnn.pp.cnn_impute(simulate(), checkpoint=folder)
    assert json.loads((folder / "key.json").read_text())["networks"] == "paper"
