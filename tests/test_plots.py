"""``pl``: what is drawn is what is stored, and looks as it did."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from helpers import assert_only_added, dense, simulate
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text
from scipy import stats

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.dropout.gamma_normal.model import PARAMETERS, STATUSES
from scanpy_cnnimpute.pl._imputation import HIGHER_IS_BETTER, LABELS, TESTS
from scanpy_cnnimpute.tl._eval_imputation import How

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata as ad
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parent / "images"
# Root mean square of the differences, of 255. Matplotlib 3.10 and 3.11 draw the same; the thinnest line makes 1.2.
TOLERANCE = 1.0

HISTORY = pd.DataFrame(
    {
        "cluster": ["all"] * 4,
        "subset": [0] * 4,
        "epoch": [1, 2, 3, 4],
        "loss": [np.nan, 3.0, 2.5, 2.4],
        "val_loss": [1.0, 0.8, 0.7, 0.75],
    }
)
PAPER_HISTORY = pd.DataFrame(
    {
        "cluster": ["a", "a", "a", "b", "b"],
        "subset": [0, 0, 0, 0, 0],
        "epoch": [1, 2, 3, 1, 2],
        "loss": [3.0, 2.0, 1.0, 4.0, 2.5],
        "val_loss": [3.5, 2.5, 2.4, 4.0, 3.5],
    }
)
CLUSTERS = pd.DataFrame(
    {"purity": [0.8, 0.95], "entropy": [0.4, 0.1], "ari": [-0.05, 0.85], "nmi": [0.6, 0.9], "n_cells": [60, 60]},
    index=["X", "layer:cnn_imputed"],
)
FALSE_SIGNALS = pd.DataFrame(
    {
        "layer": ["X", "X", "cnn_imputed", "cnn_imputed"],
        "method": ["wilcoxon", "t-test"] * 2,
        "called": [0.06, 0.05, 0.4, 0.1],
        "false_discoveries": [0.05, 0.02, 0.5, 0.2],
        "correlation": [1.0, 1.0, 2.5, 2.5],
    },
    index=list("0123"),
)
SCORES = pd.DataFrame(
    {
        "method": ["cnn_impute", "none", "gene_mean"] * 3,
        "seed": np.repeat([0, 1, 2], 3),
        "mse": [0.2, 2.0, 0.7, 0.25, 2.1, 0.75, 0.21, 1.8, 0.6],
        "pcc": [0.8, np.nan, 0.5, 0.85, np.nan, 0.55, 0.9, np.nan, 0.4],
    }
)


def record(function: str, **values: Any) -> dict[str, Any]:
    """What a call of a function leaves in `uns`."""
    params = {name: values.pop(name) for name in ("preset", "how", "label_key") if name in values}
    return {**values, "written": np.array([], dtype=str), "params": {"function": function, **params}}


@pytest.fixture(scope="module")
def results() -> ad.AnnData:
    """Everything that can be drawn; no network is trained for it."""
    adata = simulate()
    rng = np.random.default_rng(0)
    adata.obsm["X_umap"] = adata.obsm["X_latent"][:, :2]
    adata.layers["truth"] = (dense(adata.X) + rng.poisson(0.5, adata.shape)).astype(np.float32)
    adata.layers["cnn_imputed"] = np.where(dense(adata.X) > 0, dense(adata.X), rng.gamma(2.0, 0.5, adata.shape))
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.3, store="params")
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="published")
    adata.uns["cnn_imputed"] = record("pp.cnn_impute", history=HISTORY, preset="default")
    adata.uns["paper"] = record("pp.cnn_impute", history=PAPER_HISTORY, preset="paper")
    adata.uns["eval_clusters"] = record("tl.eval_clusters", table=CLUSTERS, label_key="type")
    adata.uns["eval_false_signals"] = record("tl.eval_false_signals", table=FALSE_SIGNALS)
    table = SCORES.drop(columns="seed").groupby("method", sort=False).median()
    adata.uns["eval_imputation"] = record("tl.eval_imputation", scores=SCORES, table=table, how="masking")
    return adata


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """Matplotlib's own style and Scanpy's own settings, no figure before and none left after."""
    autoshow = sc.settings.autoshow
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        plt.close("all")
        yield
        plt.close("all")
    sc.settings.autoshow = autoshow


PLOTS: dict[str, Callable[..., Axes | None]] = {
    "clusters": scnn.pl.clusters,
    "dropout_prob": lambda adata, **more: scnn.pl.dropout_prob(adata, gene="g1", **more),
    "false_signals": scnn.pl.false_signals,
    "held_out": lambda adata, **more: scnn.pl.held_out(adata, truth="truth", **more),
    "history": scnn.pl.history,
    "history_paper": lambda adata, **more: scnn.pl.history(adata, key="paper", **more),
    "imputation": scnn.pl.imputation,
    "mixture": lambda adata, **more: scnn.pl.mixture(adata, gene=MODELLED, key="published", **more),
    "reliability": scnn.pl.reliability,
}
MODELLED = "g5"


@pytest.fixture(params=PLOTS)
def plot(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return PLOTS[request.param]


@pytest.mark.parametrize("name", PLOTS)
def test_looks_as_it_did(name: str, results: ad.AnnData, tmp_path: Path) -> None:
    """Without text, whose shape depends on fonts. After a change that is meant, copy what was drawn to the images."""
    axes = PLOTS[name](results, show=False)
    figure = axes.figure
    for kind in (Text, Legend):
        for artist in figure.findobj(kind):
            artist.set_visible(False)
    figure.savefig(tmp_path / f"{name}.png", dpi=50)
    difference = compare_images(str(IMAGES / f"{name}.png"), str(tmp_path / f"{name}.png"), tol=TOLERANCE)
    assert difference is None, difference


def test_every_plot_is_tested() -> None:
    assert {name.partition("_paper")[0] for name in PLOTS} == set(scnn.pl.__all__)


def test_returns_axes_of_one_new_figure(plot: Callable[..., Any], results: ad.AnnData) -> None:
    before = results.copy()
    axes = plot(results, show=False)
    assert plt.get_fignums() == [axes.figure.number]
    assert axes.get_title()
    assert axes.get_xlabel() or axes.get_xticklabels()
    assert axes.get_ylabel() or axes.get_yticklabels()
    assert_only_added(before, results, set())
    for key in ("cnn_imputed", "eval_clusters", "eval_imputation", "dropout_prob"):
        for name, value in before.uns[key].items():
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(results.uns[key][name], value)


def test_draws_on_given_axes(plot: Callable[..., Any], results: ad.AnnData) -> None:
    figure = Figure()  # one that pyplot does not know
    left, right = figure.subplots(1, 2)
    assert plot(results, ax=right, show=False) is right
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == []


def test_show(plot: Callable[..., Any], results: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert plot(results, show=False) is not None
    assert shown == []
    assert plot(results, show=True) is None
    assert len(shown) == 1


def test_shows_as_scanpy_is_set(results: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    sc.settings.autoshow = False
    assert scnn.pl.clusters(results) is not None
    assert shown == []
    sc.settings.autoshow = True
    assert scnn.pl.clusters(results) is None
    assert len(shown) == 1


def test_save(plot: Callable[..., Any], results: ad.AnnData, tmp_path: Path) -> None:
    axes = plot(results, show=False, save=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert axes.has_data()
    assert plt.get_fignums() == []


def test_save_of_given_axes(results: ad.AnnData, tmp_path: Path) -> None:
    given = plt.subplots()[1]
    scnn.pl.clusters(results, ax=given, show=False, save=str(tmp_path / "plot.pdf"))
    assert (tmp_path / "plot.pdf").read_bytes().startswith(b"%PDF")
    assert plt.get_fignums() == [given.figure.number]


def test_save_is_a_path(plot: Callable[..., Any], results: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r"save=True is not allowed: the path of a file to write"):
        plot(results, show=False, save=True)
    assert plt.get_fignums() == []


def test_survives_h5ad(plot: Callable[..., Any], results: ad.AnnData, tmp_path: Path) -> None:
    results.write_h5ad(tmp_path / "results.h5ad")
    assert plot(sc.read_h5ad(tmp_path / "results.h5ad"), show=False) is not None


@pytest.mark.parametrize("name", set(PLOTS) - {"held_out", "history_paper", "mixture"})
def test_missing_result(name: str, adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"is stored under .* Run scnn\.(pp|tl)\.\w+ first"):
        PLOTS[name](adata, show=False)
    with pytest.raises(TypeError, match="takes an AnnData"):
        PLOTS[name](None, show=False)
    assert plt.get_fignums() == []


def test_another_result_under_the_key(results: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"No result of pp\.cnn_impute is stored under 'dropout_prob'.*'paper'"):
        scnn.pl.history(results, key="dropout_prob", show=False)


# What is drawn


def test_mixture(results: ad.AnnData) -> None:
    axes = scnn.pl.mixture(results, gene=MODELLED, cluster="b", key="published", show=False)
    probability = axes.figure.axes[1]
    inside = (results.obs["type"] == "b").to_numpy()
    bars = axes.patches[0].get_data()
    assert bars.values.sum() == inside.sum()
    # The first bar holds the zeros.
    observed = dense(results[:, MODELLED].X).ravel()
    assert bars.values[0] == (observed[inside] == 0).sum()
    position = results.uns["published"]["clusters"].tolist().index("b")
    rate, alpha, beta, mu, sigma = (
        results.varm[f"published_{name}"][results.var_names.get_loc(MODELLED), position] for name in PARAMETERS
    )
    gamma, normal = axes.lines
    x = gamma.get_xdata()
    scale = inside.sum() * np.diff(bars.edges)[0]
    first, second = rate * stats.gamma.pdf(x, alpha, scale=1 / beta), (1 - rate) * stats.norm.pdf(x, mu, sigma)
    np.testing.assert_allclose(gamma.get_ydata(), scale * first, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(normal.get_ydata(), scale * second, rtol=1e-10, atol=1e-12)
    curve, dot = probability.lines
    np.testing.assert_allclose(curve.get_ydata(), first / (first + second), atol=1e-10)
    stored = results.layers["published"][inside & (observed == 0), results.var_names.get_loc(MODELLED)]
    np.testing.assert_allclose(dot.get_ydata(), stored[0], rtol=1e-6)
    assert axes.get_title() == f"{MODELLED} in b"
    assert probability.get_ylabel() == "dropout probability (equation 2)"


def test_mixture_takes_the_largest_cluster_in_which_the_gene_is_modelled() -> None:
    adata = simulate()
    adata.obs["unequal"] = ["small"] * 20 + ["large"] * 40
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="unequal")
    status = adata.varm["dropout_prob_status"]
    large, small = (adata.uns["dropout_prob"]["clusters"].tolist().index(name) for name in ("large", "small"))
    position = np.flatnonzero((status == STATUSES.index("modelled")).all(axis=1))[0]
    both = adata.var_names[position]
    assert scnn.pl.mixture(adata, gene=both, show=False).get_title() == f"{both} in large"
    status[position, large] = STATUSES.index("mean too low")
    assert scnn.pl.mixture(adata, gene=both, show=False).get_title() == f"{both} in small"
    with pytest.raises(ValueError, match="is not modelled in cluster 'large': mean too low"):
        scnn.pl.mixture(adata, gene=both, cluster="large", show=False)
    status[position, small] = STATUSES.index("fit failed")
    with pytest.raises(ValueError, match=r"not modelled in any cluster: .*'small': 'fit failed'"):
        scnn.pl.mixture(adata, gene=both, show=False)


def test_mixture_refuses(results: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"is 'calibrated', which is no mixture.*model='gamma_normal'"):
        scnn.pl.mixture(results, gene=MODELLED, show=False)
    with pytest.raises(KeyError, match=r"cluster='c' is not known. Available: \['a', 'b'\]"):
        scnn.pl.mixture(results, gene=MODELLED, cluster="c", key="published", show=False)
    for gene in ("missing", ["g0"]):
        with pytest.raises(KeyError, match=r"is not in adata.var_names, such as \['g0', 'g1', 'g2'\]"):
            scnn.pl.mixture(results, gene=gene, key="published", show=False)  # type: ignore[arg-type]
    changed = results.copy()
    changed.X = 2 * changed.X
    with pytest.raises(ValueError, match="The counts are not those"):
        scnn.pl.mixture(changed, gene=MODELLED, key="published", show=False)
    part = results[(results.obs["type"] == "a").to_numpy()].copy()
    with pytest.raises(ValueError, match=r"No cell of cluster 'b' is left. Clusters with cells: \['a'\]"):
        scnn.pl.mixture(part, gene=MODELLED, cluster="b", key="published", show=False)
    twice = results.copy()
    twice.var_names = ["g0", MODELLED, MODELLED, *results.var_names[3:]]
    with pytest.raises(ValueError, match="is the name of several genes"):
        scnn.pl.mixture(twice, gene=MODELLED, key="published", show=False)
    assert plt.get_fignums() == []


def test_reliability(results: ad.AnnData) -> None:
    axes = scnn.pl.reliability(results, show=False)
    curve = results.uns["dropout_prob"]["reliability"]
    line = axes.lines[1]
    np.testing.assert_array_equal(line.get_xdata(), curve["probability"])
    np.testing.assert_array_equal(line.get_ydata(), curve["share"])
    heights = [bar.get_height() for bar in axes.figure.axes[1].patches]
    np.testing.assert_array_equal(heights, curve["n"])
    (intervals,) = axes.collections
    ends = np.array([segment[:, 1] for segment in intervals.get_segments()])
    assert (ends[:, 0] <= curve["share"] + 1e-9).all()
    assert (curve["share"] <= ends[:, 1] + 1e-9).all()
    assert (ends >= 0).all()
    assert (ends <= 1).all()
    error = np.average((curve["probability"] - curve["share"]).abs(), weights=curve["n"])
    assert axes.get_title() == f"Calibration error {error:.3f}"
    with pytest.raises(ValueError, match=r"'gamma_normal', which has no reliability curve.*model='calibrated'"):
        scnn.pl.reliability(results, key="published", show=False)
    empty = results.copy()
    empty.uns["dropout_prob"]["reliability"] = curve.iloc[:0]
    with pytest.raises(ValueError, match="no zero was left to judge"):
        scnn.pl.reliability(empty, show=False)


def test_history(results: ad.AnnData) -> None:
    axes = scnn.pl.history(results, show=False)
    other = axes.figure.axes[1]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), HISTORY["epoch"])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), HISTORY["val_loss"])
    np.testing.assert_array_equal(other.lines[0].get_ydata(), HISTORY["loss"])
    assert (axes.get_ylabel(), other.get_ylabel()) == ("validation loss", "training loss")
    assert len(axes.lines) == len(other.lines) == 1
    empty = results.copy()
    empty.uns["cnn_imputed"]["history"] = HISTORY.iloc[:0]
    with pytest.raises(ValueError, match="No network was trained for 'cnn_imputed'"):
        scnn.pl.history(empty, show=False)


def test_history_of_many_networks(results: ad.AnnData) -> None:
    axes = scnn.pl.history(results, key="paper", show=False)
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    assert drawn == [
        [3.5, 2.5, 2.4], [4.0, 3.5], [3.75, 3.0, 2.4],
        [3.0, 2.0, 1.0], [4.0, 2.5], [3.5, 2.25, 1.0],
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation", "training"]
    assert axes.get_title() == "2 networks and their median"


def test_clusters(results: ad.AnnData) -> None:
    axes = scnn.pl.clusters(results, show=False)
    for name, bars in zip(CLUSTERS.index, axes.containers, strict=True):
        assert bars.get_label() == name
        expected = CLUSTERS.loc[name, ["purity", "ari", "nmi", "entropy"]]
        np.testing.assert_array_equal([bar.get_height() for bar in bars], expected)
    assert axes.get_ylim()[0] < -0.05
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert [tick.endswith("(0 is best)") for tick in ticks] == [False, False, False, True]


def test_imputation(results: ad.AnnData) -> None:
    axes = scnn.pl.imputation(results, show=False)
    methods = [label.get_text() for label in axes.get_yticklabels()]
    assert methods == ["none", "gene_mean", "cnn_impute"]  # from below, the best on top
    assert axes.get_xlabel() == "mean squared error (lower is better)"
    for method, dots, line in zip(methods, axes.lines[::2], axes.lines[1::2], strict=True):
        values = SCORES.loc[SCORES["method"] == method, "mse"]
        np.testing.assert_array_equal(dots.get_xdata(), values)
        np.testing.assert_array_equal(line.get_xdata(), values.median())
    axes = scnn.pl.imputation(results, score="pcc", show=False)
    # "none" has no correlation.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gene_mean", "cnn_impute"]
    assert axes.get_xlabel() == "Pearson correlation (higher is better)"
    with pytest.raises(ValueError, match=r"score='r2' is not in .*Available: \['mse', 'pcc'\]"):
        scnn.pl.imputation(results, score="r2", show=False)


def test_imputation_knows_every_score() -> None:
    returns = inspect.getdoc(scnn.tl.eval_imputation).partition("Returns\n")[2].partition("Raises\n")[0]
    scores = set(re.findall(r"``(\w+)``", returns)) - {"table", "scores", "params"}
    assert scores == set(LABELS)
    assert set(HIGHER_IS_BETTER) <= set(LABELS)
    assert set(TESTS) == set(get_args(How))


def test_held_out(results: ad.AnnData) -> None:
    axes = scnn.pl.held_out(results, truth="truth", show=False)
    where = (dense(results.X) == 0) & (results.layers["truth"] > 0)
    assert axes.collections[0].get_array().sum() == where.sum()
    true, imputed = np.log1p(results.layers["truth"][where]), np.log1p(results.layers["cnn_imputed"][where])
    expected = f"MSE {scnn.metrics.mse(true, imputed):.3f}, PCC {scnn.metrics.pcc(true, imputed):.3f}"
    assert axes.get_title().startswith(f"{where.sum():,} held-out entries")
    assert axes.get_title().endswith(expected)
    assert axes.get_xlim() == axes.get_ylim()
    with pytest.raises(ValueError, match="Nothing was held out: the layer 'twin' is zero wherever"):
        scnn.pl.held_out(results, truth="twin", show=False)
    with pytest.raises(KeyError, match=r"layer='elsewhere' is not in adata.layers. Available"):
        scnn.pl.held_out(results, truth="elsewhere", show=False)


def test_held_out_of_a_layer(results: ad.AnnData) -> None:
    """The counts that were imputed need not be in `X`."""
    expected = scnn.pl.held_out(results, truth="truth", show=False).get_title()
    adata = results.copy()
    adata.layers["counts"], adata.X = adata.X, np.zeros(adata.shape, dtype=np.float32)
    adata.uns["cnn_imputed"]["params"]["layer"] = "counts"
    assert scnn.pl.held_out(adata, truth="truth", show=False).get_title() == expected


def test_dropout_prob(results: ad.AnnData) -> None:
    axes = scnn.pl.dropout_prob(results, gene="g1", show=False)
    grey, points = axes.collections
    counted = dense(results[:, "g1"].X).ravel() > 0
    np.testing.assert_array_equal(grey.get_offsets(), results.obsm["X_umap"][counted])
    probability = scnn.get.dropout_prob(results, genes="g1").ravel()[~counted]
    order = np.argsort(probability, kind="stable")
    np.testing.assert_array_equal(points.get_array(), probability[order])
    np.testing.assert_array_equal(points.get_offsets(), results.obsm["X_umap"][~counted][order])
    assert points.get_clim() == (0, 1)
    assert axes.get_xlabel() == "UMAP1"
    assert axes.get_title() == "g1 (grey: counted)"
    assert scnn.pl.dropout_prob(results, gene="g1", basis="umap", show=False).get_xlabel() == "UMAP1"
    with pytest.raises(KeyError, match=r"basis='tsne' is not in adata.obsm. Available: \['X_latent', 'X_umap'"):
        scnn.pl.dropout_prob(results, gene="g1", basis="tsne", show=False)
    flat = results.copy()
    flat.obsm["X_umap"] = flat.obsm["X_umap"][:, :1]
    with pytest.raises(ValueError, match=r"basis='X_umap' has shape \(60, 1\): two columns or more"):
        scnn.pl.dropout_prob(flat, gene="g1", show=False)


def test_dropout_prob_of_a_gene_counted_everywhere() -> None:
    adata = simulate(n_cells=20, n_genes=10)
    x = dense(adata.X)
    x[:, 0] += 1
    adata.X = x
    adata.obsm["X_umap"] = adata.obsm["X_latent"][:, :2]
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.3)
    axes = scnn.pl.dropout_prob(adata, gene="g0", show=False)
    assert [len(dots.get_offsets()) for dots in axes.collections] == [20, 0]
