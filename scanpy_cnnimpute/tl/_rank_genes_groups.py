"""``tl.rank_genes_groups``: differential expression whose p-values are calibrated by decoys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from .._anndata.counts import check_adata
from .._anndata.results import Results, all_or_nothing, check_keys
from .._checks import check_choice, check_key, check_number, check_seed, warn_user
from .._logging import logger
from .._threads import check_n_jobs, limit_keras, limited_threads
from ..differential import DecoyNull
from ._contrasts import REST, LayerValues, as_records, read_contrasts, test_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._contrasts import Tested

Method = Literal["t-test", "wilcoxon"]
Correction = Literal["benjamini-hochberg", "bonferroni"]
CALLER = "tl.rank_genes_groups"
MAX_DECOYS = 100
CALLED = 0.05  # p-value up to which decoys are counted as called


def rank_genes_groups(
    adata: AnnData,
    groupby: str,
    *,
    groups: Literal["all"] | Sequence[str] = "all",
    reference: str = REST,
    layer: str | None = None,
    method: Method = "t-test",
    null: Literal["decoys"] | None = "decoys",
    n_decoys: int = 1,
    n_genes: int | None = None,
    rankby_abs: bool = False,
    corr_method: Correction = "benjamini-hochberg",
    key_added: str = "rank_genes_groups",
    random_state: int = 0,
    n_jobs: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Rank genes by their difference between groups of cells, with p-values that decoys calibrate.

    Parameters
    ----------
    adata
        Annotated data with counts, raw or imputed.
    groupby
        Column of `.obs` with the groups.
    groups
        Groups to compare with the reference. Default: all.
    reference
        A group, or ``"rest"``: all other cells.
    layer
        Layer to test: counts, raw or imputed. log1p(CP10k) at the library sizes of the observed counts is taken inside.
        Default: `X`. Which one: see Notes.
    method
        ``"t-test"``: Welch's. ``"wilcoxon"``: the rank-sum test with correction for ties.
    null
        ``"decoys"``: every gene gets a decoy, its counts permuted among compared cells of similar library size. Decoys
        are imputed and tested like genes, and say what scores genes have that do not differ. ``None``: p-values of the
        test as it is, which are too small for imputed layers.
    n_decoys
        Number of decoys of each gene.
    n_genes
        Number of genes in the result. Default: all.
    rankby_abs
        Rank by the absolute score.
    corr_method
        How p-values are adjusted for the number of genes.
    key_added
        Key in `.uns`.
    random_state
        Seed of the permutations.
    n_jobs
        Threads of numba and BLAS; the results do not depend on them before the network. Default: one per core.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.uns[key_added]``
        As :func:`scanpy.tl.rank_genes_groups`: record arrays ``names``, ``scores``, ``pvals``, ``pvals_adj``,
        ``logfoldchanges`` with a column per group, by falling score, and ``params``. Scores are normal scores, which
        have the p-value of the test; with ``null="decoys"`` over those of decoys of similar mean expression.
    ``.uns[f"{key_added}_decoys"]``
        ``table``: DataFrame, for each group ``called``: share of the decoys with a p-value up to 0.05 in the test as it
        is (0.05 if it is right); ``scale``: what scores were divided by, median over genes; ``power``: of the
        exponent of their null distribution, median over genes, 2 for a normal one.

    Raises
    ------
    KeyError
        If a column or layer is not there.
    TypeError, ValueError
        For groups with fewer than two cells, normalised or log-transformed layers, and unknown options.

    Notes
    -----
    Cells that were imputed borrow from each other, so that values within a group are too much alike, and tests that
    take them for independent find differences everywhere. Groups that differ in sequencing depth have the same effect
    on counts. Decoys show both, as all that the cells have in common stays; random halves of one group show neither.

    A layer of :func:`~scanpy_cnnimpute.pp.cnn_impute` with the default preset is computed again from the stored imputer
    (it need not be in memory): loadings of genes and decoys are fitted to the stored scores of the cells in the same
    way. Decoys of other layers are their values permuted. Scores of genes that do not differ follow a generalised
    normal distribution whose 5 % quantile is that of 400 decoys of similar mean, with the tails of all decoys.

    Which layer: on four public sets with bulk, 10 to 200 cells of each group, t-tests with decoys find about as many
    genes in the imputed layer as in counts, and about as many right ones (``benchmarks/differential``); areas under the
    curve are 0.014 apart at most. Scores of Wilcoxon's test of imputed values are bounded, so that few genes may
    stand out of their decoys: take the t-test there.

    Values that are computed again differ from those of the layer by what fitting the loadings anew changes. Where
    groups differ in depth, decoys are conservative: depth moves scores in one direction, and both are held to the same
    scale. Groups that were found by clustering the same cells differ by construction, which no decoy mends.

    P-values treat cells as independent samples. For replicated designs sum the observed counts of each sample and test
    those.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.tl.rank_genes_groups(adata, "cell_line", groups=["A549"], reference="H838")
    >>> table = sc.get.rank_genes_groups_df(adata, group="A549")
    >>> list(table)
    ['names', 'scores', 'logfoldchanges', 'pvals', 'pvals_adj']
    """
    check_adata(adata, caller=CALLER)
    n_jobs = check_n_jobs(n_jobs)
    check_choice("method", method, get_args(Method))
    check_choice("corr_method", corr_method, get_args(Correction))
    if null is not None:
        check_choice("null", null, ["decoys"])
    n_decoys = check_number("n_decoys", n_decoys, int, 1, MAX_DECOYS)
    check_number("rankby_abs", rankby_abs, bool)
    check_number("copy", copy, bool)
    if layer is not None:
        check_key("layer", layer)
    if n_genes is not None:
        n_genes = check_number("n_genes", n_genes, int, 1)
    random_state = check_seed(random_state)
    check_keys(key_added=key_added)
    adata = adata.copy() if copy else adata
    contrasts = read_contrasts(adata, groupby, groups, reference)
    earlier = adata.uns.get(key_added)
    if earlier is not None and not (isinstance(earlier, Mapping) and {"names", "scores", "params"} <= set(earlier)):
        msg = f"adata.uns[{key_added!r}] is no ranking of genes and would be overwritten. Choose another key_added."
        raise ValueError(msg)
    results = Results(adata, function=CALLER, key=f"{key_added}_decoys", keys=[])
    limit_keras(n_jobs)
    with limited_threads(n_jobs):
        n_decoys = 0 if null is None else n_decoys
        values = LayerValues(adata, layer, caller=CALLER, n_decoys=n_decoys, random_state=random_state)
        if values.is_imputed and null is None:
            warn_user(
                f"{CALLER}: {layer!r} is imputed, and cells that were imputed are no independent samples: on public "
                "data the t-test calls 6 to 17 % of the genes that do not differ at p <= 0.05, Wilcoxon's 28 to 75 %. "
                "Pass null='decoys', or test the counts."
            )
        tested = test_layer(values, contrasts, [method], shared=reference == REST)[method]
    columns: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, each in tested.items():
        scores, p_values, row = _calibrated(each)
        rows[name] = row
        order = np.argsort(-np.abs(scores) if rankby_abs else -scores, kind="stable")[:n_genes]
        columns[name] = {
            "names": adata.var_names.to_numpy(dtype=object)[order],
            "scores": scores[order],
            "pvals": p_values[order],
            "pvals_adj": _adjusted(p_values, corr_method)[order],
            "logfoldchanges": each.log2_fold_change[order],
        }
    kinds = {"names": "O", "scores": "f4", "pvals": "f8", "pvals_adj": "f8", "logfoldchanges": "f4"}
    params = {
        "groupby": groupby,
        "reference": reference,
        "method": method,
        "use_raw": False,
        "layer": layer,
        "corr_method": corr_method,
    }
    records = {
        field: as_records(list(columns), {name: each[field] for name, each in columns.items()}, kind)
        for field, kind in kinds.items()
    }
    with all_or_nothing(adata):
        # As Scanpy writes it, which replaces an earlier result.
        adata.uns[key_added] = {"params": params, **records}
        if null is None:
            adata.uns.pop(f"{key_added}_decoys", None)  # of an earlier call
            return adata if copy else None
        table = pd.DataFrame.from_dict(rows, orient="index")
        results.write({"table": table}, {**params, "null": null, "n_decoys": n_decoys, "random_state": random_state})
    logger.info("%s: the test as it is calls %.0f %% of the decoys at 0.05", CALLER, 100 * table["called"].mean())
    return adata if copy else None


def _calibrated(tested: Tested) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Scores and p-values of all genes, 1 where nothing was counted, and what the decoys said."""
    decoys = tested.decoy_scores[tested.decoy_seen]
    null = DecoyNull.fit(tested.decoy_mean[tested.decoy_seen], decoys)
    scores = null.scaled(tested.mean, tested.scores)
    p_values = np.where(tested.seen, null.p_values(tested.mean, tested.scores), 1.0)
    called = float(np.mean(np.abs(decoys) >= norm.isf(CALLED / 2))) if decoys.size else np.nan
    at = tested.mean[tested.seen] if tested.seen.any() else np.zeros(1)
    scale, power = np.interp(at, null.mean, null.scale), np.interp(at, null.tail_mean, null.power)
    return scores, p_values, {"called": called, "scale": float(np.median(scale)), "power": float(np.median(power))}


def _adjusted(p_values: np.ndarray, corr_method: str) -> np.ndarray:
    if corr_method == "bonferroni":
        return np.minimum(p_values * p_values.size, 1.0)
    return false_discovery_control(p_values) if p_values.size else p_values
