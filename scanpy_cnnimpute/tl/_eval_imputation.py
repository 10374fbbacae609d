"""``tl.eval_imputation``: hold something out of the counts, impute, and score what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import metrics
from .._anndata.counts import check_adata, get_counts
from .._anndata.results import Results, check_keys, cluster_codes
from .._checks import check_number
from ..presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import scipy.sparse as sp

How = Literal["molecules", "masking", "thinning"]

SCALE = 1e4
# Keywords of pp.cnn_impute that a test decides itself.
RESERVED = {
    *("preset", "layer", "dropout_key", "cluster_key", "estimate", "return_std", "random_state", "key_added"),
    *("verbose", "copy"),
}
FLOOR = 0.01  # of a gene's mean rate: what a prediction of nothing is taken for


def eval_imputation(
    adata: AnnData,
    *,
    how: How = "molecules",
    layer: str | None = None,
    cluster_key: str | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    share: float = 0.5,
    capture_efficiency: float | None = None,
    n_seeds: int = 5,
    random_state: int = 0,
    key_added: str = "eval_imputation",
) -> pd.DataFrame:
    """Measure how well imputation recovers what was held out of the counts, beside simple methods.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    how
        ``"molecules"``: molecular cross-validation. The molecules of each entry are split in two; what is imputed
        from the first set (with ``preset="default"`` the expected counts) predicts the second. ``"masking"``: the
        paper's test. A tenth of the non-zeros of the genes seen in half of the cells is set to zero and predicted
        (with ``preset="default"`` by the conditional estimate). ``"thinning"``: each molecule is kept with probability
        `share`, which the default is told, and the counts are recovered.
    layer
        Layer with the counts. Default: `X`.
    cluster_key
        Column of `.obs` with clusters, for the cluster mean and the imputation. Default: none, and the imputation
        finds its own. Clusters that were found in all counts know those that are held out, which favours the cluster
        mean.
    preset
        Preset of :func:`~scanpy_cnnimpute.pp.cnn_impute`.
    settings
        Further keywords of :func:`~scanpy_cnnimpute.pp.cnn_impute`.
    share
        Share of the molecules that the imputation sees in ``"molecules"`` and ``"thinning"``.
    capture_efficiency
        Share of a cell's molecules that the counts hold, if known: the two sets of ``"molecules"`` then overlap as two
        independent captures would.
    n_seeds
        Number of random repetitions.
    random_state
        Seed of the first repetition; the others count up.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per method, ``"cnn_impute"`` and those of :data:`~scanpy_cnnimpute.metrics.BASELINES`:
    for each score the median over the repetitions and, as ``<score>_range``, largest minus smallest. Also in
    ``.uns[key_added]``: ``table``, ``scores`` (one row per method and seed), ``params``. The scores are

    - ``"masking"``, of log1p(counts) at the masked entries: ``mse``, ``pcc``, ``gene_pcc`` (median over genes);
    - ``"thinning"``, of log1p(counts per 10,000), library sizes of the counts before imputation: ``mse``, ``pcc``
      over all entries, ``mse_zeros``, ``pcc_zeros`` at zeros; for ``"cnn_impute"`` also those of the dropout
      probabilities: ``auroc``, ``brier``, ``ece`` (expected calibration error);
    - ``"molecules"``: ``deviance`` (Poisson, of the held-out counts; predictions below 1 % of the gene's mean rate
      are raised to that) and ``mse`` of the held-out counts.

    Raises
    ------
    KeyError, TypeError, ValueError
        For unusable counts, unknown options and keys.

    Notes
    -----
    Every repetition makes the counts dense, a few times. Molecular cross-validation: Batson, Royer and Webber,
    bioRxiv 786269; masking: the paper, "cnnImpute accurately recovers missing value".

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:60, :200].copy()
    >>> table = scnn.tl.eval_imputation(adata, how="masking", settings={"n_steps": 2}, n_seeds=1)
    >>> "cnn_impute" in table.index
    True
    """
    check_adata(adata, caller="tl.eval_imputation")
    if how not in get_args(How):
        msg = f"how={how!r} is not known. Available: {list(get_args(How))}."
        raise ValueError(msg)
    if preset not in PRESETS:
        msg = f"preset={preset!r} is not known. Available: {sorted(PRESETS)}."
        raise ValueError(msg)
    check_number("n_seeds", n_seeds, int, 1)
    check_number("random_state", random_state, int, 0)
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_imputation", key=key_added, keys=[])
    counts = get_counts(adata, layer, caller="tl.eval_imputation")
    labels = None
    if cluster_key is not None:
        codes, names = cluster_codes(adata, cluster_key, caller="tl.eval_imputation")
        labels = pd.Categorical.from_codes(codes, categories=names)
    given = dict(settings or {})
    if RESERVED & set(given):
        msg = f"settings={given!r}: {sorted(RESERVED & set(given))} are chosen by tl.eval_imputation; leave them out."
        raise ValueError(msg)

    def impute(held: sp.csr_array, genes: np.ndarray, seed: int, efficiency: float | None) -> AnnData:
        # Imported late: pp builds on tl.
        from .. import pp

        more: dict[str, Any] = {}
        # Cells that have lost all counts stay: the score charges them.
        part = AnnData(held, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=adata.var_names[genes]))
        if labels is not None:
            part.obs["clusters"] = labels
            more["cluster_key"] = "clusters"
        if preset == "default" and efficiency is None:
            # The conditional estimate of every zero, as the paper's test asks for.
            part.layers["dropout_prob"] = np.ones(held.shape, dtype=np.float32)
            more |= {"estimate": "conditional", "threshold": 0.0}
        elif preset == "default":
            # What is imputed may be turned into molecules, or must be recovered on the scale of logarithms.
            more["estimate"] = "expected_count" if how == "molecules" else "posterior_mean"
            pp.dropout_prob(
                part,
                cluster_key=more.get("cluster_key"),
                capture_efficiency=efficiency,
                random_state=seed,
                store="params",
            )
        pp.cnn_impute(part, preset=preset, random_state=seed, verbose=False, **{**more, **given})
        return part

    measure: Callable[[int], dict[str, dict[str, float]]] = {
        "masking": lambda seed: _masking(counts, labels, impute, seed),
        "thinning": lambda seed: _thinning(counts, labels, impute, seed, share),
        "molecules": lambda seed: _molecules(
            counts, labels, impute, seed, share, capture_efficiency, told=preset == "default"
        ),
    }[how]
    rows = []
    for seed in range(random_state, random_state + n_seeds):
        rows += [{"method": name, "seed": seed, **scores} for name, scores in measure(seed).items()]
    scores = pd.DataFrame(rows)
    table = summarise(scores)
    scores.index = scores.index.astype(str)
    results.write(
        {"table": table, "scores": scores},
        {
            "how": how,
            "layer": layer,
            "cluster_key": cluster_key,
            "preset": preset,
            "settings": {name: value for name, value in given.items() if value is not None},
            "share": share,
            "capture_efficiency": capture_efficiency,
            "n_seeds": n_seeds,
            "random_state": random_state,
        },
    )
    return table.copy()


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Median and range over the seeds, a row per method, in their order."""
    groups = scores.drop(columns="seed").groupby("method", sort=False)
    median = groups.median()
    spread = (groups.max() - groups.min()).add_suffix("_range")
    both = [column for name in median.columns for column in (name, f"{name}_range")]
    return median.join(spread)[both]


def _masking(
    counts: sp.csr_array, labels: Any, impute: Callable[..., AnnData], seed: int
) -> dict[str, dict[str, float]]:
    masked = metrics.mask_nonzeros(counts, random_state=seed)
    where = (masked.rows, masked.columns)
    imputed = _dense(impute(masked.counts, masked.genes, seed, None).layers["cnn_imputed"])
    estimates = {"cnn_impute": imputed[where]}
    for name in metrics.BASELINES:
        estimates[name] = metrics.baseline_estimates(masked.counts, name, clusters=labels, random_state=seed)[where]
    truth = np.log1p(masked.truth)
    return {
        name: {
            "mse": metrics.mse(truth, np.log1p(values)),
            "pcc": metrics.pcc(truth, np.log1p(values)),
            "gene_pcc": metrics.gene_pcc(truth, np.log1p(values), masked.columns),
        }
        for name, values in estimates.items()
    }


def _thinning(
    counts: sp.csr_array, labels: Any, impute: Callable[..., AnnData], seed: int, share: float
) -> dict[str, dict[str, float]]:
    thinned = metrics.thin_counts(counts, capture_efficiency=share, random_state=seed)
    part = impute(thinned, np.arange(counts.shape[1]), seed, share)
    truth, observed = counts.toarray(), thinned.toarray()
    zero = observed == 0
    target = _log_normalised(truth, truth.sum(axis=1))
    estimates = {"cnn_impute": _dense(part.layers["cnn_imputed"])}
    for name in metrics.BASELINES:
        estimates[name] = metrics.baseline_estimates(thinned, name, clusters=labels, random_state=seed)
    scores = {}
    for name, values in estimates.items():
        estimate = _log_normalised(values, observed.sum(axis=1))
        scores[name] = {
            "mse": metrics.mse(target, estimate),
            "pcc": metrics.pcc(target, estimate),
            "mse_zeros": metrics.mse(target[zero], estimate[zero]),
            "pcc_zeros": metrics.pcc(target[zero], estimate[zero]),
        }
    from .. import get

    probability = get.dropout_prob(part)[zero]
    dropout = truth[zero] > 0
    scores["cnn_impute"] |= {
        "auroc": metrics.auroc(dropout, probability),
        "brier": metrics.brier_score(dropout, probability),
        "ece": metrics.expected_calibration_error(dropout, probability),
    }
    return scores


def _molecules(
    counts: sp.csr_array,
    labels: Any,
    impute: Callable[..., AnnData],
    seed: int,
    share: float,
    capture_efficiency: float | None,
    *,
    told: bool,
) -> dict[str, dict[str, float]]:
    train, test = metrics.split_molecules(counts, share=share, capture_efficiency=capture_efficiency, random_state=seed)
    part = impute(train, np.arange(counts.shape[1]), seed, share)
    held_out, library_size = test.toarray(), train.sum(axis=1)
    # From the molecules of the first set to those expected in the second.
    scale = (held_out.sum() / max(library_size.sum(), 1)) or 1.0
    floor = FLOOR * scale * train.mean(axis=0)
    estimates = {"cnn_impute": _dense(part.layers["cnn_imputed"])}
    for name in metrics.BASELINES:
        estimates[name] = metrics.baseline_estimates(train, name, clusters=labels, random_state=seed)
    scores = {}
    for name, values in estimates.items():
        expected = scale * values
        if name == "cnn_impute" and told:
            # It was told the share, and says what both sets together hold: where the first has none, the second all.
            expected = np.where(train.toarray() > 0, expected, values / share)
        seen = floor > 0  # genes without a molecule in the first set cannot be predicted by anyone
        scores[name] = {
            "deviance": metrics.poisson_deviance(held_out[:, seen], np.maximum(expected, floor)[:, seen]),
            "mse": metrics.mse(held_out, expected),
        }
    return scores


def _log_normalised(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    return np.log1p(counts * (SCALE / np.maximum(library_size, 1))[:, None])


def _dense(layer: Any) -> np.ndarray:
    return layer.toarray() if hasattr(layer, "toarray") else np.asarray(layer)
