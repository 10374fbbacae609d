"""The report: complete, self-contained, escaped, and honest about the figures that it has."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from helpers import simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._anndata.results import Record
from scanpy_cnnimpute._cli import main
from scanpy_cnnimpute._report.conclusions import compare, conclusions
from scanpy_cnnimpute._report.page import render
from scanpy_cnnimpute._report.records import read_records
from scanpy_cnnimpute._report.words import listed, number, percent, plain

if TYPE_CHECKING:
    from pathlib import Path

FAST: dict[str, Any] = {"n_steps": 3, "verbose": False}
SECTIONS = [
    "conclusions",
    "data",
    "imputed",
    "dropout",
    "held-out",
    "false-signals",
    "training",
    "parameters",
    "versions",
]
VOID = {"meta", "link", "img", "br", "hr", "input"}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page(HTMLParser):
    """Reads a page, and fails where elements are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.conclusions: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag == "li":
            self.conclusions.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if "li" in self.open:
            self.conclusions[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(text: str) -> Page:
    """What holds for every report: well-formed, complete, accessible, and without anything from elsewhere."""
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert [each["id"] for each in page.all("h2")] == SECTIONS
    assert len(page.all("h1")) == len(page.all("title")) == len(page.all("main")) == 1
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    for link in page.all("a"):
        assert (link["href"] or "")[1:] in identities
    # Nothing is loaded: neither by the page nor by its images, and no script runs.
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    assert not re.search(r"url\(|@import|https?://", text)
    for image in page.all("img"):
        assert image["alt"]
        assert image["width"]
        assert image["height"]
        svg = base64.b64decode((image["src"] or "").removeprefix("data:image/svg+xml;base64,")).decode()
        assert "<svg" in svg
        assert not re.search(r'(href|src)="(?!#)', svg)
    tables = page.all("table")
    assert tables
    assert len(page.all("caption")) == len(tables)
    assert all(each.get("scope") in {"row", "col"} for each in page.all("th"))
    boxes = [each for each in page.all("div") if each.get("class") == "scroll"]
    assert len(boxes) == len(tables)
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in boxes)
    return page


@pytest.fixture(scope="module")
def full() -> ad.AnnData:
    """An imputation with all that a report can show."""
    adata = simulate(120)
    scnn.pp.cnn_impute(adata, cluster_key="type", **FAST)
    scnn.tl.eval_imputation(adata, cluster_key="type", settings={"n_steps": 3}, n_seeds=2)
    scnn.tl.eval_imputation(adata, how="thinning", settings={"n_steps": 3}, n_seeds=1, key_added="thinned")
    scnn.tl.eval_false_signals(adata, "type", layers=["X", "cnn_imputed"])
    return adata


def test_complete_report(full: ad.AnnData, tmp_path: Path) -> None:
    before = full.copy()
    path = scnn.report(full, tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    page = check(path.read_text(encoding="utf-8"))
    # Reliability, two evaluations, false signals, training.
    assert len(page.all("img")) == 5
    zeros = full.n_obs * full.n_vars - full.X.nnz
    for expected in (
        "120 cells x 50 genes",
        f"{zeros:,}",
        "Held-out molecules",
        "Counts before thinning",
        f"{int(full.uns['cnn_imputed']['summary']['n_entries'].sum()):,} zeros",
        "Do not correlate genes",
        "obs['dropout_prob_library_size']",
        "n_steps",
        scnn.__version__,
    ):
        assert expected in page.text
    called = full.uns["eval_false_signals"]["table"].set_index(["layer", "method"])["called"]
    wilcoxon = " ".join(percent(called["cnn_imputed", "wilcoxon"]).split())
    assert f"wilcoxon {wilcoxon}" in page.text
    assert full.uns.keys() == before.uns.keys()
    assert set(full.layers) == set(before.layers)


def test_same_results_same_bytes(full: ad.AnnData, tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    first = scnn.report(full, tmp_path / "a.html").read_bytes()
    with plt.rc_context({"axes.grid": True, "font.size": 20, "savefig.dpi": 30}):
        assert scnn.report(full.copy(), tmp_path / "b.html").read_bytes() == first
        assert plt.rcParams["font.size"] == 20
    assert plt.get_fignums() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    adata = simulate(60)
    adata.var_names = [f"<script>alert({i})</script>" for i in range(adata.n_vars)]
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"a": "<b>'\"&amp;", "b": "$\\frac{x}\n\x07"})
    key = '"><img src=x onerror=alert(1)>'
    adata.layers["$x^{<i>"] = adata.X
    scnn.pp.cnn_impute(adata, key_added=key, cluster_key="type", **FAST)
    scnn.tl.eval_false_signals(adata, "type", layers=["$x^{<i>", key], key_added="signals<")
    text = scnn.report(adata, tmp_path / "report.html", key=key).read_text(encoding="utf-8")
    page = check(text)
    assert page.all("b") == page.all("i") == []
    assert "<script>alert(0)</script>" in page.text
    assert "<b>'\"&amp;" in page.text
    assert f"Imputation report: {key}" in page.text
    assert "\x07" not in text


def test_paper(imputed: ad.AnnData, tmp_path: Path) -> None:
    page = check(scnn.report(imputed, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The gamma-normal mixture calls" in page.text
    assert "have collapsed onto the zeros" in page.text
    assert "Not tested on held-out counts" in page.text
    status = imputed.uns["cnn_imputed"]["status"]
    assert f"{int((status == 'imputed').to_numpy().sum()):,}" in page.text
    assert len(page.all("img")) == 1


def test_dropout_model_alone(adata: ad.AnnData, tmp_path: Path) -> None:
    scnn.pp.dropout_prob(adata, capture_efficiency=0.2)
    page = check(scnn.report(adata, tmp_path / "report.html", key="dropout_prob").read_text(encoding="utf-8"))
    assert "Dropout report: dropout_prob" in page.text
    assert "Nothing: only a dropout model is stored" in page.text
    assert "Capture efficiency, stated 0.2" in page.text
    assert not re.search("Do not (test|correlate|impute)", page.text)


def test_probabilities_of_the_user(adata: ad.AnnData) -> None:
    adata.layers["mine"] = np.where(adata.X.toarray() == 0, 0.9, 0.0)
    scnn.pp.cnn_impute(adata, dropout_key="mine", **FAST)
    page = check(render(adata, "cnn_imputed"))
    assert "No dropout model is stored under 'mine'" in page.text
    assert len(page.all("img")) == 1


def test_probabilities_that_the_user_changed(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata)
    adata.layers["dropout_prob"][0, adata.X[0].toarray()[0] == 0] = 1.0
    scnn.pp.cnn_impute(adata, **FAST)
    assert "used layers['dropout_prob'] as you changed it" in check(render(adata, "cnn_imputed")).text


def test_denoised_at_a_depth(adata: ad.AnnData) -> None:
    scnn.pp.cnn_impute(adata, entries="all", depth=500.0, **FAST)
    page = check(render(adata, "cnn_denoised"))
    assert "Denoised: every entry has a predicted value" in page.text
    assert "Normalise imputed values with depth=500" in page.text
    assert "Observed counts are unchanged" not in page.text


def test_without_layers_backed_and_lazy(tmp_path: Path) -> None:
    """Of counts that are not in memory, no matrix is read, and all else is the same."""
    adata = simulate(600)
    scnn.pp.cnn_impute(adata, store="params", **FAST)
    adata.write_h5ad(tmp_path / "data.h5ad")
    adata.write_zarr(tmp_path / "data.zarr")
    here = render(adata, "cnn_imputed")
    assert "of a sample of 500 cells" in check(here).text
    backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    lazy = ad.experimental.read_lazy(tmp_path / "data.zarr")
    there = [render(each, "cnn_imputed") for each in (backed, lazy)]
    backed.file.close()
    assert there[0] == there[1]
    assert "Zeros</th>" in here
    assert "Zeros</th>" not in check(there[0]).text
    assert [line for line in here.splitlines() if line not in there[0].splitlines()] == [
        line for line in here.splitlines() if "Zeros</th>" in line or re.search(r"<td.*of the entries", line)
    ]


def test_dask_layer_is_not_computed() -> None:
    da = pytest.importorskip("dask.array")
    adata = simulate(600)
    adata.X = da.from_array(adata.X.toarray(), chunks=(200, -1))
    scnn.pp.cnn_impute(adata, **FAST)

    def fail(_block: Any) -> Any:
        msg = "the layer is computed"
        raise AssertionError(msg)

    adata.layers["cnn_imputed"] = adata.layers["cnn_imputed"].map_blocks(fail, meta=np.empty((0, 0), np.float32))
    adata.X = adata.X.map_blocks(fail, meta=np.empty((0, 0), np.float32))
    assert "of a sample of 500 cells" in check(render(adata, "cnn_imputed")).text


def test_nothing_stored(adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"stored under 'cnn_imputed'. Stored: \[\]. Run scnn.pp.cnn_impute first"):
        scnn.report(adata, tmp_path / "report.html")
    scnn.pp.dropout_prob(adata)
    with pytest.raises(KeyError, match=r"Stored: \['dropout_prob'\]. Pass key='dropout_prob', or run"):
        scnn.report(adata, tmp_path / "report.html")
    with pytest.raises(KeyError, match="stored under 'mine'"):
        scnn.report(adata, tmp_path / "report.html", key="mine")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_kept(full: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match=r"is no report of scanpy-cnnimpute.*overwrite=True"):
        scnn.report(full, path)
    assert path.read_text() == "<p>mine</p>"
    scnn.report(full, path, overwrite=True)
    first = path.read_bytes()
    scnn.report(full, path)  # an older report is replaced
    assert path.read_bytes() == first
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(FileExistsError, match="it is no file"):
        scnn.report(full, tmp_path / "folder.html", overwrite=True)
    with pytest.raises(ValueError, match=r"must end in one of .html, .htm"):
        scnn.report(full, tmp_path / "data.h5ad")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scnn.report(full, tmp_path / "none" / "report.html")
    with pytest.raises(TypeError, match="expected the name of an HTML file"):
        scnn.report(full, 3)  # type: ignore[arg-type]


def scores(values: dict[str, list[float]], **params: Any) -> Record:
    """A record of tl.eval_imputation with these deviances."""
    n_seeds = len(next(iter(values.values())))
    table = pd.DataFrame(
        [
            {"method": method, "seed": seed, "deviance": each[seed]}
            for method, each in values.items()
            for seed in range(n_seeds)
        ]
    )
    record = {"scores": table, "params": {"how": "molecules", "preset": "default", **params}}
    return Record(record, "adata.uns['eval_imputation']", "tl.eval_imputation")


OTHERS = {"none": [0.9, 0.9], "gene_mean": [0.5, 0.52], "cluster_mean": [0.45, 0.46], "rank_k": [2.0, 2.0]}


@pytest.mark.parametrize(
    ("ours", "cluster_key", "expected"),
    [
        ([0.4, 0.4], "type", "Imputation helps here."),
        ([0.455, 0.455], None, "Imputation helps here."),
        ([0.496, 0.516], None, "Imputation helps a little here."),
        # Better with one seed of two is not better.
        ([0.455, 0.455], "type", "Imputation says no more than a table of cluster means."),
        ([0.6, 0.6], "type", "Do not impute these data: what is imputed says nothing about single cells."),
        ([0.95, 0.95], None, "Do not impute these data: imputation is no better than doing nothing."),
    ],
)
def test_verdicts(full: ad.AnnData, ours: list[float], cluster_key: str | None, expected: str) -> None:
    params = {} if cluster_key is None else {"cluster_key": cluster_key}
    adata = ad.AnnData(uns={name: full.uns[name] for name in ("cnn_imputed", "dropout_prob")})
    record = scores({"cnn_impute": ours, **OTHERS}, **params)
    adata.uns["eval"] = record | {"written": np.array([], dtype=str)}
    adata.uns["eval"]["params"]["function"] = "tl.eval_imputation"
    first = conclusions(read_records(adata, "cnn_imputed"))[0]
    assert first.text.startswith(expected)
    assert first.kind == ("good" if expected.startswith("Imputation helps") else "caution")
    assert first.text.endswith(
        "in 2 repetitions." if "table of cluster means" in expected else "each of 2 repetitions."
    )


def test_comparisons_in_words() -> None:
    _, found = compare(scores({"cnn_impute": [0.41, 0.41], **OTHERS}))
    assert [each.name for each in found] == ["none", "gene_mean"]
    assert found[1].words() == "20\N{NO-BREAK SPACE}% better than by the gene's mean (0.510)"
    _, found = compare(scores({"cnn_impute": [0.6, 0.6], **OTHERS, "rank_k": [0.2, 0.2]}))
    assert [each.name for each in found] == ["none", "gene_mean", "rank_k"]
    assert found[1].words() == "18\N{NO-BREAK SPACE}% worse than by the gene's mean (0.510)"
    assert found[2].words() == "3.0 times as badly as by the simple method 'rank_k' (0.200)"
    _, found = compare(scores({"cnn_impute": [0.4, 0.6], **OTHERS}))
    assert found[1].words() == "about as well as by the gene's mean (0.510)"


def test_test_of_another_preset(full: ad.AnnData) -> None:
    adata = full[:].copy()
    adata.uns["eval_imputation"]["params"]["preset"] = "paper"
    text = check(render(adata, "cnn_imputed")).text
    assert "This test was of preset='paper'; the values here are of preset='default'." in text


def test_miscalibrated_probabilities(full: ad.AnnData) -> None:
    adata = full.copy()
    curve = adata.uns["dropout_prob"]["reliability"]
    curve["share"] = np.minimum(curve["probability"] + 0.2, 1)
    text = check(render(adata, "cnn_imputed")).text
    assert "Dropout probabilities are understated: they are off by 0.2 on average." in text


def test_words() -> None:
    words = [percent(share) for share in (0, 0.0001, 0.051, 0.05, 0.18, 1, np.nan)]
    assert [each.replace("\N{NO-BREAK SPACE}", " ") for each in words] == [
        "0 %", "less than 0.1 %", "5.1 %", "5 %", "18 %", "100 %", "unknown"
    ]  # fmt: skip
    assert [number(value) for value in (1234567, 0.5, 1.23456)] == ["1,234,567", "0.5", "1.23"]
    assert plain("a\nb\x00") == "a?b?"
    assert len(plain("x" * 1000)) == 200
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize("streamed", [False, True])
def test_command_line(adata: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str], streamed: bool) -> None:
    adata.write_h5ad(tmp_path / "in.h5ad")
    report, output = tmp_path / "report.html", tmp_path / "out.h5ad"
    arguments = ["impute", str(tmp_path / "in.h5ad"), str(output), "--quiet", "--n-steps", "2", "--report", str(report)]
    arguments += ["--memory-limit", "1KB"] * streamed
    report.write_text("mine")
    assert main(arguments) == 1
    assert "is no report of scanpy-cnnimpute" in capsys.readouterr().err
    assert not output.exists()
    assert main([*arguments, "--force"]) == 0
    assert "Imputation report: cnn_imputed" in check(report.read_text(encoding="utf-8")).text


WRAPPER = """<!doctype html><title>frames</title><body>{frames}<pre></pre><script>
onload = () => {{
  const pages = [...document.querySelectorAll("iframe")].map(each => each.contentDocument);
  document.querySelector("pre").textContent = JSON.stringify(pages.map(page => ({{
    width: page.documentElement.clientWidth,
    needed: page.documentElement.scrollWidth,
    images: [...page.images].map(image => image.complete && image.naturalWidth > 0),
  }})));
}}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_browser_shows_it_on_any_screen(full: ad.AnnData, tmp_path: Path) -> None:
    """No message on the console, all images shown, and no page wider than a phone or a large screen."""
    report = scnn.report(full, tmp_path / "report.html").resolve()
    frames = "".join(f'<iframe src="{report.as_uri()}" width="{width}" height="800"></iframe>' for width in (400, 1400))
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(WRAPPER.format(frames=frames))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
    assert CHROMIUM is not None
    run = subprocess.run(
        [CHROMIUM, *options, wrapper.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search("<pre>(.+?)</pre>", run.stdout)
    assert found is not None
    for page in json.loads(found[1]):
        assert page["needed"] <= page["width"]
        assert len(page["images"]) == 5
        assert all(page["images"])
