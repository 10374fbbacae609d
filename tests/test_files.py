"""Files and folders: what is replaced, what an end at any step leaves, and what damaged files end in."""

from __future__ import annotations

import builtins
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from damaged import damages, outcomes
from helpers import simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import _atomic, _cli, _finished, _process, _saved
from scanpy_cnnimpute._anndata import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata as ad

DROPOUT = ["--cluster-key", "type", "--quiet"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.h5ad"
    simulate().write_h5ad(path)
    return path


def run(*arguments: Any) -> int:
    return _cli.main([str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_may_vanish_from_a_folder_that_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # zarr writes in threads, which delete their unfinished files after the error has been raised.
    folder, calls, delete = tmp_path / "x", [], shutil.rmtree
    (folder / "inner").mkdir(parents=True)

    def one_vanishes(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(path)
        delete(path)

    monkeypatch.setattr(shutil, "rmtree", one_vanishes)
    _atomic.remove(folder)
    assert not folder.exists()
    assert calls == [folder, folder]


@pytest.mark.parametrize("inside", ["o.zarr", "layers/o.h5ad", "r.html"])
def test_nothing_is_written_into_a_store(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    store = tmp_path / "s.zarr"
    simulate().write_zarr(store)
    before = sorted(store.rglob("*"))
    output = ["--report", store / inside] if inside.endswith("html") else []
    target = tmp_path / "o.h5ad" if output else store / inside
    assert run("impute", store, target, "--n-steps", "2", "--quiet", *output) == 1
    assert f"lies in the zarr store {store}" in capsys.readouterr().err
    assert sorted(store.rglob("*")) == before
    assert names(tmp_path) == ["in.h5ad", "s.zarr"]
    with pytest.raises(FileExistsError, match="lies in the zarr store"):
        scnn.CNNImputer(n_steps=2, verbose=False).fit(simulate()).save(store / "imputer")


@pytest.mark.parametrize("content", [b"precious", b"", b"\x89HDF\r\n\x1a\nprecious"])
def test_a_file_that_is_no_anndata_is_not_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    output = tmp_path / "x.h5ad"
    output.write_bytes(content)
    assert run("dropout", source, output, *DROPOUT, "--force") == 1
    assert "is not an AnnData h5ad file and is not replaced" in capsys.readouterr().err
    assert output.read_bytes() == content


def test_an_hdf5_file_of_another_kind_is_not_replaced(source: Path, tmp_path: Path) -> None:
    import h5py

    output = tmp_path / "x.h5ad"
    with h5py.File(output, "w") as file:
        file["precious"] = 1
    assert run("dropout", source, output, *DROPOUT, "--force") == 1
    with h5py.File(output) as file:
        assert "precious" in file


def test_a_store_with_other_files_is_not_replaced(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.zarr"
    simulate().write_zarr(output)
    (output / "thesis.txt").write_text("precious")
    assert run("dropout", source, output, *DROPOUT, "--force") == 1
    assert (output / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "is_replaced"),
    [(b"a,b\r\n1,\xc3\xa9\n", True), (b"", True), (b"a\0b", False), (b"\x1f\x8b\x08", False), (b"\xff\xfea", False)],
)
def test_a_table_replaces_texts_alone(tmp_path: Path, content: bytes, is_replaced: bool) -> None:
    output = tmp_path / "t.csv"
    output.write_bytes(content)
    if is_replaced:
        assert files.check_output(output, force=True, is_text=True) == output
    else:
        with pytest.raises(FileExistsError, match="is not a text file"):
            files.check_output(output, force=True, is_text=True)
    assert output.read_bytes() == content


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_mode_of_what_is_replaced_is_kept(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"x.{suffix}"
    simulate().write_h5ad(output) if suffix == "h5ad" else simulate().write_zarr(output)
    output.chmod(0o750)
    with files.replacing(output, force=True) as new:
        files.write(simulate(), new, output)
    assert output.stat().st_mode & 0o777 == 0o750


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "x.h5ad"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(FileExistsError, match="Pass --force"))
        stack.enter_context(files.replacing(output, force=False)).write_text("new")
        output.write_text("precious")
    assert output.read_text() == "precious"
    assert names(tmp_path) == ["x.h5ad"]


@pytest.mark.parametrize("letters", [60, 250])
def test_one_process_writes_to_an_output(tmp_path: Path, letters: int) -> None:
    output = tmp_path / f"{'x' * (letters - 5)}.h5ad"
    with files.replacing(output, force=False) as new:
        new.write_text("new")
        with pytest.raises(_atomic.InUseError, match="Another process uses"):
            files.check_output(output, force=False)
        with pytest.raises(_atomic.InUseError):
            _finished.FinishedParts(_atomic.unfinished_folder(output), {})
    assert output.read_text() == "new"
    assert names(tmp_path) == [output.name]


def test_finished_parts_of_long_work_stay(tmp_path: Path) -> None:
    output = tmp_path / "x.h5ad"
    parts = _finished.FinishedParts(_atomic.unfinished_folder(output), {"a": 1})
    parts.save("b", {"c": np.ones(1)})
    parts.close()
    files.check_output(output, force=False)
    again = _finished.FinishedParts(_atomic.unfinished_folder(output), {"a": 1})
    assert "b" in again
    again.remove()
    assert names(tmp_path) == []


def test_a_killed_process_leaves_what_the_next_deletes(tmp_path: Path) -> None:
    folder = _atomic.unfinished_folder(tmp_path / "x.h5ad")
    folder.mkdir()
    for name in ("new", "lock"):
        (folder / name).write_text("half")
    files.check_output(tmp_path / "x.h5ad", force=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("use", ["load", "save", "check_input"])
def test_a_kill_between_two_renames_is_put_back(tmp_path: Path, use: str) -> None:
    place = tmp_path / ("m" if use != "check_input" else "m.zarr")
    if use == "check_input":
        simulate().write_zarr(place)
    else:
        _saved.save(place, {"version": "old"}, {}, overwrite=False)
    folder = _atomic.unfinished_folder(place)
    folder.mkdir()
    place.rename(folder / "old")
    (folder / "new").mkdir()
    if use == "load":
        assert _saved.load(place)[0]["version"] == "old"
    elif use == "check_input":
        files.check_input(place)
    else:
        with pytest.raises(FileExistsError):
            _saved.save(place, {}, {}, overwrite=False)
        _saved.save(place, {"version": "new"}, {}, overwrite=True)
        assert _saved.load(place)[0]["version"] == "new"
    assert names(tmp_path) == [place.name]


def test_save_replaces_nothing_but_saved_imputers(tmp_path: Path) -> None:
    _saved.save(tmp_path / "m", {}, {}, overwrite=False)
    (tmp_path / "m" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="and nothing else"):
        _saved.save(tmp_path / "m", {}, {}, overwrite=True)
    assert (tmp_path / "m" / "thesis.txt").exists()


class _KilledError(BaseException):
    """Stands for the end of the process: cleaning up is not run after it."""


STEPS: list[tuple[Any, str]] = [
    (os, "mkdir"),
    (os, "open"),
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "chmod"),
    (os, "close"),
    (shutil, "rmtree"),
    (np, "savez"),
    (Path, "write_text"),
    (builtins, "open"),
]
"""What saving is made of."""


N_LOCKING = 4  # steps until the folder is locked and cleaned up


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: int, *, before: bool, error: BaseException) -> Iterator[list[int]]:
    """Raise an error before or after one of the steps, or after it for good; yields the number of steps."""
    count = [0]

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            own = count[0]
            fails = own == at or (isinstance(error, _KilledError) and own > at)
            if fails and before:
                raise error
            result = original(*arguments, **named)
            if fails:
                raise error
            return result

        return step

    with monkeypatch.context() as patch:
        for place, name in STEPS:
            patch.setattr(place, name, wrapped(getattr(place, name)))
        yield count


@pytest.mark.skipif(sys.platform != "linux", reason="closes locks that it finds in /proc")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, _KilledError])
def test_saving_that_ends_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], before: bool
) -> None:
    place, arrays = tmp_path / "m", {"a": np.arange(3)}
    at, has_failed, found = 0, True, set()
    while has_failed:
        at += 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        _saved.save(place, {"version": "old"}, arrays, overwrite=False)
        # shutil.rmtree closes twice what it has closed when the interrupt comes.
        with failing(monkeypatch, at, before=before, error=kind()) as count, contextlib.suppress(kind, OSError):
            _saved.save(place, {"version": "new"}, arrays, overwrite=True)
        has_failed = count[0] >= at
        if kind is KeyboardInterrupt and at > N_LOCKING:
            assert names(tmp_path) == ["m"]
        _free_locks(tmp_path)
        description, loaded = _saved.load(place)
        found.add(description["version"])
        np.testing.assert_array_equal(loaded["a"], arrays["a"])
        _saved.save(place, {"version": "newest"}, arrays, overwrite=True)
        assert _saved.load(place)[0]["version"] == "newest"
        assert names(tmp_path) == ["m"]
    assert at > 10
    assert found == {"old", "new"}


def _free_locks(folder: Path) -> None:
    """Close the locks that a process would have closed by its end."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(str(folder)):
                os.close(int(link.name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_clean_up(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("ignored by who started the tests, as in the background or by nohup")

    def read(_: Path) -> None:
        assert len(names(tmp_path)) == 2
        os.kill(os.getpid(), number)
        time.sleep(10)

    handler = signal.getsignal(number)
    monkeypatch.setattr(files, "read", read)
    assert run("dropout", source, tmp_path / "x.h5ad", *DROPOUT) == 128 + number
    said = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert capsys.readouterr().err == f"scanpy-cnnimpute: {said}\n"
    assert names(tmp_path) == ["in.h5ad"]
    assert signal.getsignal(number) == handler


def test_an_interrupt_that_a_library_turns_into_another_error(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Path) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as error:
            msg = "numpy cannot be imported"
            raise ImportError(msg) from error

    monkeypatch.setattr(files, "read", read)
    assert run("dropout", source, tmp_path / "x.h5ad", *DROPOUT) == 143
    assert capsys.readouterr().err == "scanpy-cnnimpute: stopped by SIGTERM\n"


def test_an_interrupt_that_is_lost_comes_again() -> None:
    class Careless:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with _process.stopped_by_signals() as stop:
        Careless()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
    assert stop.code == 143


def test_an_interrupt_while_modules_are_imported(tmp_path: Path) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("started in the background, where Ctrl-C is ignored")
    code = "import sys; from scanpy_cnnimpute._cli import main; print(flush=True); sys.exit(main())"
    command = [sys.executable, "-c", code, "dropout", "no.h5ad", "x.h5ad"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "scanpy-cnnimpute: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/full", 1, "scanpy-cnnimpute: error: [Errno 28] No space left on device"),
        (">&-", 1, "scanpy-cnnimpute: error: standard output cannot be written to: Bad file descriptor"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_streams_that_cannot_be_written_to(redirected: str, code: int, said: str) -> None:
    command = f"{sys.executable} -u -m scanpy_cnnimpute._cli --version {redirected}"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.strip() == said


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_an_input_that_is_no_file_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "in.h5ad"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null" if kind == "device" else path)
    for command in (["dropout", path, "x.h5ad"], ["impute", path, "x.h5ad"], ["estimate", path]):
        assert run(*command) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "is not a regular file" in lines[0] or kind == "loop"


def test_quiet_is_quiet(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["dropout", source, tmp_path / "a.zarr"],
        ["impute", tmp_path / "a.zarr", tmp_path / "b.zarr", "--n-steps", "2"],
        ["impute", source, tmp_path / "c.zarr", "--n-steps", "2", "--memory-limit", "1KB"],
    ):
        assert run(*command, "--quiet") == 0
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    source, output = small_disk / "in.h5ad", small_disk / f"out.{suffix}"
    simulate().write_h5ad(source)
    simulate(4, 5).write_h5ad(output) if suffix == "h5ad" else simulate(4, 5).write_zarr(output)
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    os.truncate(small_disk / "rest", (small_disk / "rest").stat().st_size - 20_000)
    before, content = names(small_disk), source.read_bytes()
    assert run("dropout", source, output, *DROPOUT, "--force") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{output} cannot be written: " in lines[0]
    assert names(small_disk) == before
    assert source.read_bytes() == content
    assert files.read(output).shape == (4, 5)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_damaged_files_end_in_a_line_or_a_result(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in.{suffix}"
    simulate().write_h5ad(source) if suffix == "h5ad" else simulate().write_zarr(source)
    found = list(outcomes(source, damages(source, 5, 15, seed=1), "dropout"))
    assert len(found) == 20
    assert [each for each in found if each[1] not in {"error", "result"}] == []
    assert {outcome for _, outcome, _ in found} == {"error", "result"}


BAD_NAMES = [".", "..", "_index", "a\0", "n" * 300, "a/b", "a\\b", "", "\ud800", ".zgroup", ".zmetadata"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_files_cannot_hold_are_refused_before_the_work(adata: ad.AnnData, name: str) -> None:
    before = list(adata.uns)
    groups = {"groupby": "type", "group": "a", "reference_group": "b"}
    for function, keywords in (
        (scnn.pp.dropout_prob, {}),
        (scnn.pp.cnn_impute, {}),
        (scnn.tl.cluster, {}),
        (scnn.tl.eval_clusters, {"label_key": "type", "layers": ["X"]}),
        (scnn.tl.eval_imputation, {}),
        (scnn.tl.eval_gini, {"reference": "twin", "layers": ["X"]}),
        (scnn.tl.eval_de, {**groups, "reference": adata.to_df(), "layers": ["X"]}),
        (scnn.tl.eval_false_signals, {"groupby": "type"}),
        (scnn.tl.rank_genes_groups, {"groupby": "type"}),
    ):
        run_it: Any = function
        with pytest.raises(ValueError, match="is not allowed: "):
            run_it(adata, key_added=name, **keywords)
    assert list(adata.uns) == before


@pytest.mark.parametrize("value", [2**70, -(2**70), b"2", 1j])
def test_values_that_json_or_files_cannot_hold_are_refused(value: Any) -> None:
    for name in ("random_state", "n_steps", "learning_rate"):
        with pytest.raises((TypeError, ValueError), match=name):
            scnn.CNNImputer(**{name: value})


def test_what_is_saved_of_a_capture_efficiency_is_a_plain_number(tmp_path: Path) -> None:
    counts = simulate().X
    imputer = scnn.CNNImputer(n_steps=1, verbose=False).fit(counts, capture_efficiency=np.float32(0.5))
    imputer.save(tmp_path / "m")
    np.testing.assert_array_equal(
        scnn.CNNImputer.load(tmp_path / "m").transform(counts).toarray(), imputer.transform(counts).toarray()
    )
    with pytest.raises(TypeError, match=r"capture_efficiency=b'0\.5' has type bytes"):
        scnn.CNNImputer(n_steps=1, verbose=False).fit(counts, capture_efficiency=b"0.5")  # type: ignore[arg-type]


def test_a_layer_that_is_not_read_is_a_name(adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="layer has type bytes"):
        scnn.tl.cluster(adata, use_rep="X_latent", layer=b"2")  # type: ignore[arg-type]
