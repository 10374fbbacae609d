"""Draw the figures of the documentation from the bundled data.

    python docs/figures/make_figures.py

Ten minutes on two cores. Colours are those of Okabe and Ito, and differences do not rest on colour alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib as mpl
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from cycler import cycler
from matplotlib import pyplot as plt

import scanpy_cnnimpute as scnn

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000"]
MARKERS = ["o", "s", "^", "D", "v"]
STYLE = {
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def embed(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """UMAP after Scanpy's usual steps, with the library sizes of the observed counts."""
    counts = adata.X if layer is None else adata.layers[layer]
    per_10k = 1e4 / adata.obs["dropout_prob_library_size"].to_numpy()[:, None]
    logs = sp.csr_matrix(counts).multiply(per_10k).tocsr().log1p()
    copy = ad.AnnData(logs, obs=adata.obs[["cell_line"]].copy(), var=adata.var[[]].copy())
    sc.pp.highly_variable_genes(copy, n_top_genes=2000)
    sc.pp.pca(copy, n_comps=20)
    sc.pp.neighbors(copy)
    sc.tl.umap(copy, random_state=0)
    return copy.obsm["X_umap"]


def shallow_copy(adata: ad.AnnData) -> ad.AnnData:
    """A tenth of the molecules: what a shallow run of the same cells would have counted."""
    thinned = adata.copy()
    thinned.X = scnn.metrics.thin_counts(adata.X, capture_efficiency=0.1)
    return thinned


def draw_embedding(ax: mpl.axes.Axes, points: np.ndarray, lines: np.ndarray, title: str) -> None:
    """Cells by line, in colour and shape."""
    for name, colour, marker in zip(np.unique(lines), OKABE_ITO, MARKERS, strict=False):
        own = lines == name
        ax.scatter(*points[own].T, s=9, marker=marker, color=colour, linewidth=0, label=name)
    ax.set(title=title, xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")


def draw_scores(ax: mpl.axes.Axes, table: pd.DataFrame) -> None:
    """Deviance of held-out molecules, of the imputation and of methods that everybody knows."""
    shown = {
        "none": "counts, not imputed",
        "gene_mean": "mean of the gene",
        "cluster_mean": "mean of the cell line",
        "cnn_impute": "cnn_impute",
    }
    scores = table.loc[list(shown), "deviance"]
    colours = ["#999999"] * (len(shown) - 1) + [OKABE_ITO[0]]
    ax.barh(list(shown.values()), scores, color=colours)
    for position, score in enumerate(scores):
        ax.annotate(f"{score:.2f}", (score, position), xytext=(3, 0), textcoords="offset points", va="center")
    ax.set(xlabel="deviance of held-out molecules\n(lower is better)", xlim=(0, 1.2 * scores.max()))
    ax.set_title("Error against doing nothing")


def landing(adata: ad.AnnData) -> None:
    """Before, after, and both tests of the fit."""
    shallow = shallow_copy(adata)
    scnn.pp.dropout_prob(shallow)
    scnn.pp.cnn_impute(shallow, verbose=False)
    table = scnn.tl.eval_imputation(shallow, cluster_key="cell_line")
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6.4))
    lines = shallow.obs["cell_line"].to_numpy().astype(str)
    draw_embedding(axes[0, 0], embed(shallow, None), lines, "Counts")
    draw_embedding(axes[0, 1], embed(shallow, "cnn_imputed"), lines, "Imputed")
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1, markerscale=1.6)
    scnn.pl.reliability(shallow, ax=axes[1, 0], show=False)
    axes[1, 0].get_legend().remove()
    axes[1, 0].set_title("Probabilities: stated and observed")
    draw_scores(axes[1, 1], table)
    figure.savefig(FOLDER / "landing.png")
    print(table[["deviance", "deviance_range"]].round(3))


def telling_gene(adata: ad.AnnData) -> str:
    """The gene whose detection differs most between the lines."""
    detected = (adata.to_df() > 0).groupby(adata.obs["cell_line"], observed=True).mean()
    return (detected.max() - detected.min()).idxmax()


def save(ax: mpl.axes.Axes, name: str) -> None:
    """Write the figure of the axes."""
    ax.figure.savefig(FOLDER / f"{name}.png", bbox_inches="tight")
    plt.close(ax.figure)


def gallery(adata: ad.AnnData) -> None:
    """One figure of every function of ``pl``."""
    scnn.pp.dropout_prob(adata)
    scnn.pp.cnn_impute(adata, verbose=False)
    adata.obsm["X_umap"] = embed(adata, None)
    save(scnn.pl.reliability(adata, show=False), "reliability")
    save(scnn.pl.history(adata, show=False), "history")
    save(scnn.pl.dropout_prob(adata, gene=telling_gene(adata), show=False), "dropout_prob")

    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="cell_line", key_added="published", store="params")
    detected = (adata[adata.obs["cell_line"] == "A549"].to_df() > 0).mean()
    gene = (detected - 0.6).abs().idxmin()  # enough counts and zeros to see both components
    save(scnn.pl.mixture(adata, gene=gene, cluster="A549", key="published", show=False), "mixture")

    scnn.tl.eval_clusters(adata, label_key="cell_line", layers=["X", "cnn_imputed"])
    save(scnn.pl.clusters(adata, show=False), "clusters")

    scnn.tl.eval_imputation(adata, cluster_key="cell_line")
    save(scnn.pl.imputation(adata, show=False), "imputation")

    scnn.tl.eval_false_signals(adata, "cell_line", groups=["A549"], reference="H1975")
    save(scnn.pl.false_signals(adata, show=False), "false_signals")

    masked = scnn.metrics.mask_nonzeros(adata.X)
    held_out = adata[:, masked.genes].copy()
    held_out = ad.AnnData(masked.counts, var=held_out.var[[]], layers={"truth": held_out.X})
    scnn.pp.cnn_impute(held_out, estimate="conditional", threshold=0, verbose=False)
    save(scnn.pl.held_out(held_out, truth="truth", show=False), "held_out")


def main() -> None:
    """Draw all figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    mpl.use("Agg")
    with mpl.rc_context(STYLE):
        adata = scnn.datasets.five_cell_lines()
        landing(adata)
        gallery(adata)


if __name__ == "__main__":
    main()
