"""The data of the paper's experiments, or the nearest public ones, and what is measured on imputed copies of them.

A case is a count matrix to impute and a function that scores the result. One imputation serves all scores of a case.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from scipy import stats
from sklearn.manifold import TSNE

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIN_DETECTION = 0.05
# Whether a score is better when high.
HIGH_IS_BEST = {
    **dict.fromkeys(("mse", "gini_mse", "entropy", "lfc_mse", "ned"), False),
    **dict.fromkeys(("pcc", "gene_pcc", "gini_pcc", "purity", "ari", "nmi"), True),
    **dict.fromkeys(("auc", "n_up", "n_down", "lfc_pcc"), True),
}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: file in the data folder, accession, licence."""

    file: str
    accession: str
    licence: str


SOURCES = {
    "jurkat": Source("jurkat_293t_10x.h5ad", "10x Genomics, Jurkat:293T 50:50 (Zheng 2017)", "CC BY 4.0"),
    "grun": Source("grun_mesc.h5ad", "GSE54695 (Grun 2014)", "GEO, none stated"),
    "grun_smfish": Source("grun_mesc_smfish_gini.csv", "Grun 2014, smFISH counts", "none stated"),
    "spleen": Source("mca_spleen.h5ad", "GSE108097 (Han 2018)", "GEO, none stated"),
    "zeisel": Source("zeisel_saver.h5ad", "GSE60361 (Zeisel 2015)", "GEO, none stated"),
    "soumillon": Source("soumillon_hasc.h5ad", "GSE53638 (Soumillon 2014)", "GEO, none stated"),
    "celseq2": Source("mix_sc_celseq2_5cl_p1.h5ad", "GSE118767 (Tian 2019)", "MIT"),
    "dropseq": Source("mix_sc_dropseq.h5ad", "GSE118767 (Tian 2019)", "MIT"),
    "bulk_jurkat": Source("bulk_jurkat_293t_gse129240.h5ad", "GSE129240", "GEO, none stated"),
    "bulk_celllines": Source("bulk_5cl_gse86337.h5ad", "GSE86337 (Holik 2017)", "GEO, none stated"),
}


class DataMissingError(Exception):
    """A file is not in the data folder."""


@dataclass
class Case:
    """Counts to impute, and how to score an imputed copy of them (dense, in counts)."""

    counts: sp.csr_array
    scores: Callable[[np.ndarray], dict[str, float]]
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    """Filled by `scores` where there is something to look at: coordinates and labels."""


@dataclass(frozen=True)
class Experiment:
    """One data set of the evaluation."""

    load: Callable[[Path | None, int], Case]
    paper: tuple[str, ...]
    """Scores that are among the paper's 17 experiments, or stand in for one."""
    seeded: bool = False
    """Whether the data depend on the seed."""


def path_of(folder: Path | None, source: str) -> Path:
    """The file of a source, or an error that says what is missing and where it comes from."""
    wanted = SOURCES[source]
    if folder is None or not (folder / wanted.file).exists():
        place = "no data folder was given" if folder is None else f"it is not in {folder}"
        msg = f"{wanted.file} is needed, but {place}. Source: {wanted.accession}; licence: {wanted.licence}."
        raise DataMissingError(msg)
    return folder / wanted.file


def filtered(adata: ad.AnnData) -> ad.AnnData:
    """Genes seen in at least 5 % of the cells, cells with counts in them."""
    seen = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    adata = adata[:, seen >= MIN_DETECTION]
    return adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()


# --- accuracy


def masked(source: str) -> Callable[[Path | None, int], Case]:
    """A tenth of the non-zeros of genes seen in half of the cells, log1p(counts) (the paper's figure 2A, 2B)."""

    def load(folder: Path | None, seed: int) -> Case:
        held = metrics.mask_nonzeros(ad.read_h5ad(path_of(folder, source)).X, random_state=seed)
        truth = np.log1p(held.truth)

        def scores(imputed: np.ndarray) -> dict[str, float]:
            estimate = np.log1p(imputed[held.rows, held.columns])
            return {
                "mse": metrics.mse(truth, estimate),
                "pcc": metrics.pcc(truth, estimate),
                "gene_pcc": metrics.gene_pcc(truth, estimate, held.columns),
            }

        return Case(held.counts, scores)

    return load


def fish(folder: Path | None, _: int) -> Case:
    """Gini coefficients against smFISH, both media, cells normalised by Gapdh (the paper's figure 2C)."""
    table = pd.read_csv(path_of(folder, "grun_smfish"))
    # Several assays of a gene: their mean, weighted by cells. Areas take the place of the housekeeping gene there.
    table["weighted"] = table["gini_area_norm"] * table["n_cells"]
    reference = table.groupby(["medium", "gene"])[["weighted", "n_cells"]].sum()
    reference = reference["weighted"] / reference["n_cells"]
    adata = ad.read_h5ad(path_of(folder, "grun"))
    adata = adata[adata.obs["material"] != "RNA"]
    wanted = {"Gapdh", *reference.index.get_level_values("gene")} & set(adata.var_names)
    seen = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    adata = adata[:, (seen >= 0.5) | adata.var_names.isin(list(wanted))].copy()  # noqa: PLR2004

    def scores(imputed: np.ndarray) -> dict[str, float]:
        found, expected = [], []
        for medium in reference.index.unique("medium"):
            cells = (adata.obs["medium"] == medium).to_numpy()
            values = pd.DataFrame(imputed[cells], columns=adata.var_names)
            rescaled, _kept = metrics.housekeeping_normalize(values.to_numpy(), values["Gapdh"].to_numpy())
            coefficients = pd.Series(metrics.gini(rescaled), index=adata.var_names)
            genes = [gene for gene in reference[medium].index if gene in wanted]
            found.append(coefficients[genes].to_numpy())
            expected.append(reference[medium][genes].to_numpy())
        truth, estimate = np.concatenate(expected), np.concatenate(found)
        return {"gini_mse": metrics.mse(truth, estimate), "gini_pcc": metrics.pcc(truth, estimate)}

    return Case(sp.csr_array(adata.X), scores)


# --- clusters


def clusters(imputed: np.ndarray, labels: np.ndarray, case: Case) -> dict[str, float]:
    """The paper's clusters of an imputed matrix against known types (its figures 3 and 4)."""
    adata = ad.AnnData(imputed.copy())  # Scanpy normalises in place
    adata.obs["label"] = pd.Categorical(labels)
    sc.pp.normalize_total(adata, target_sum=1e6)
    sc.pp.log1p(adata, base=2)
    sc.pp.pca(adata, n_comps=min(50, *(n - 1 for n in adata.shape)), random_state=1)
    tsne = TSNE(n_components=3, perplexity=30, init="pca", random_state=1, n_jobs=1)
    adata.obsm["X_tsne"] = tsne.fit_transform(adata.obsm["X_pca"])
    table = scnn.tl.eval_clusters(adata, label_key="label", use_rep="X_tsne", method="adp")
    case.embeddings.update(tsne=adata.obsm["X_tsne"].astype(np.float32), labels=np.asarray(labels, dtype=str))
    return {name: float(table.iloc[0][name]) for name in ("purity", "entropy", "ari", "nmi")}


# --- differential expression


References = dict[tuple[str, str], pd.DataFrame]
"""Tables of fold changes and p-values by the two groups that are compared; the second may be the rest."""

REST = "rest"


def differential(imputed: np.ndarray, adata: ad.AnnData, references: References) -> dict[str, float]:
    """Means over the pairs of groups of the concordance with reference tables (the paper's figure 5)."""
    copy = ad.AnnData(imputed, obs=adata.obs[["cell_type"]], var=adata.var[[]])
    rows = []
    for (group, other), reference in references.items():
        types = copy.obs["cell_type"]
        copy.obs["compared"] = types if other != REST else np.where(types == group, group, REST)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # scanpy: logarithms of genes without counts
            table = scnn.tl.eval_de(
                copy,
                groupby="compared",
                group=group,
                reference_group=other,
                reference=reference,
                # The paper's levels: of bulk, and of data before dropout (adjusted p-values).
                reference_p_value=0.05 if other == REST else 0.09,
                key_added=f"{group} {other}",
            )
        rows.append(table.iloc[0])
    mean = pd.DataFrame(rows).astype(float).mean()
    names = {"auc": "auc", "up": "n_up", "down": "n_down", "pcc": "lfc_pcc", "mse": "lfc_mse", "ned": "ned"}
    return {new: float(mean[old]) for old, new in names.items()}


def bulk_table(bulk: pd.DataFrame, group: list[str], other: list[str]) -> pd.DataFrame:
    """log2 fold changes and t-test of log2(CPM + 1) of bulk samples (columns) for each gene (rows)."""
    expression = np.log2(1 + 1e6 * bulk / bulk.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # genes that are constant over all samples
        test = stats.ttest_ind(expression[group], expression[other], axis=1)
    change = expression[group].mean(axis=1) - expression[other].mean(axis=1)
    return pd.DataFrame({"log2_fold_change": change, "p_value": np.nan_to_num(test.pvalue, nan=1.0)})


def bulk_pairs(folder: Path | None, source: str, types: dict[str, str]) -> References:
    """Reference tables for all pairs of cell types; `types` maps those of the single cells to those of the bulk."""
    adata = ad.read_h5ad(path_of(folder, source))
    bulk = pd.DataFrame(adata.X.toarray().T, index=adata.var_names, columns=adata.obs_names)
    bulk = bulk[~bulk.index.duplicated()]
    samples = {name: adata.obs_names[adata.obs["cell_type"] == own].tolist() for name, own in types.items()}
    return {(a, b): bulk_table(bulk, samples[a], samples[b]) for a, b in combinations(types, 2)}


def labelled(
    source: str, pairs: Callable[[Path | None, ad.AnnData], References] | None = None
) -> Callable[[Path | None, int], Case]:
    """Clusters of a data set with known types, and with references differential expression."""

    def load(folder: Path | None, _: int) -> Case:
        complete = ad.read_h5ad(path_of(folder, source))
        references = pairs(folder, complete) if pairs else {}
        adata = filtered(complete)

        def scores(imputed: np.ndarray) -> dict[str, float]:
            found = differential(imputed, adata, references) if references else {}
            return {**found, **clusters(imputed, adata.obs["cell_type"].to_numpy(), case)}

        case = Case(sp.csr_array(adata.X), scores)
        return case

    return load


def jurkat_bulk(folder: Path | None, _: Any) -> References:
    """Two samples of each line."""
    return bulk_pairs(folder, "bulk_jurkat", {"Jurkat": "jurkat", "293T": "293t"})


def cell_line_bulk(folder: Path | None, adata: ad.AnnData) -> References:
    """Two samples of each line, all pairs of lines."""
    return bulk_pairs(folder, "bulk_celllines", {name: name for name in sorted(adata.obs["cell_type"].unique())})


def soumillon_bulk(_: Path | None, adata: ad.AnnData) -> References:
    """Days 7 and 0, sorted and unsorted as two samples each."""
    bulk = adata.var.filter(like="bulk_D3T")
    samples = {day: [f"bulk_D3T{day}_{kind}" for kind in ("sorted", "unsorted")] for day in (7, 0)}
    return {("day7", "day0"): bulk_table(bulk, samples[7], samples[0])}


def simulation(_: Path | None, seed: int) -> Case:
    """The paper's simulation: clusters, and each group against the rest with the data before dropout as truth."""
    adata = scnn.datasets.simulate(random_state=seed)
    adata.obs["cell_type"] = adata.obs["group"].astype(str).astype("category")
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() > 0].copy()
    complete = ad.AnnData(adata.layers["true_counts"].copy(), obs=adata.obs, var=adata.var)
    sc.pp.normalize_total(complete, target_sum=1e4)
    sc.pp.log1p(complete)
    sc.tl.rank_genes_groups(complete, "cell_type", method="wilcoxon")
    references = {}
    for group in complete.obs["cell_type"].cat.categories:
        table = sc.get.rank_genes_groups_df(complete, group).set_index("names")
        references[group, REST] = pd.DataFrame(
            {"log2_fold_change": table["logfoldchanges"], "p_value": table["pvals_adj"]}
        )

    def scores(imputed: np.ndarray) -> dict[str, float]:
        return {
            **clusters(imputed, adata.obs["cell_type"].to_numpy(), case),
            **differential(imputed, adata, references),
        }

    case = Case(sp.csr_array(adata.X), scores)
    return case


QUALITY = ("purity", "entropy", "ari")
EXPERIMENTS = {
    "masked_jurkat": Experiment(masked("jurkat"), ("mse", "pcc"), seeded=True),
    "masked_grun": Experiment(masked("grun"), ("mse", "pcc"), seeded=True),
    "fish_grun": Experiment(fish, ("gini_mse", "gini_pcc")),
    "clusters_spleen": Experiment(labelled("spleen"), QUALITY),
    "clusters_zeisel": Experiment(labelled("zeisel"), QUALITY),
    "simulation": Experiment(simulation, (*QUALITY, "auc"), seeded=True),
    "bulk_jurkat": Experiment(labelled("jurkat", jurkat_bulk), ("auc",)),
    "bulk_soumillon": Experiment(labelled("soumillon", soumillon_bulk), ()),
    "bulk_celseq2": Experiment(labelled("celseq2", cell_line_bulk), ()),
    "bulk_dropseq": Experiment(labelled("dropseq", cell_line_bulk), ()),
}
