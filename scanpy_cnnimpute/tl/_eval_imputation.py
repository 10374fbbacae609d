"""``tl.eval_imputation``: hold out part of the counts, impute, and score the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import metrics
from .._anndata.counts import check_adata, open_counts
from .._anndata.results import Results, check_keys, cluster_codes
from .._checks import MAX_SEED, check_choice, check_key, check_number, check_share
from .._counts import Counts, CountsInMemory
from .._logging import logger
from .._matrix import log_normalised
from .._threads import single_threaded_blas
from ..dropout.calibrated.model import MAX_CELLS, molecules_of
from ..dropout.read_counts import CountType, resolve_count_type
from ..imputation import find_imputer, presets, resolve_settings
from ..metrics._baselines import TARGET_SUM, Baselines, row_blocks
from ..metrics._streaming import Calibration, Deviance, PairedScores

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp

How = Literal["molecules", "masking", "thinning"]

# A prediction below this share of the mean rate of the gene is raised to it: the deviance of a count that was predicted
# to be 0 is infinite. The same for all methods.
MIN_RATE = 0.01


def eval_imputation(
    adata: AnnData,
    *,
    how: How = "molecules",
    layer: str | None = None,
    cluster_key: str | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    count_type: CountType = "auto",
    share: float = 0.5,
    capture_efficiency: float | None = None,
    n_seeds: int = 5,
    random_state: int = 0,
    key_added: str = "eval_imputation",
) -> pd.DataFrame:
    """Score how well the imputation and simple methods predict counts that were held out.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    how
        - ``"molecules"``: molecular cross-validation. The molecules of each entry are split into two sets. The first
          set is imputed and predicts the second.
        - ``"masking"``: the test of the paper. A tenth of the non-zeros of the genes that are detected in half of the
          cells is set to zero and predicted.
        - ``"thinning"``: each molecule is kept with probability `share`. The thinned counts are imputed and predict
          the original counts.

        With ``preset="default"`` the imputation estimates expected counts, conditional counts and posterior means,
        in this order. In ``"molecules"`` and ``"thinning"`` it is told that `share` of the molecules were captured.
    layer
        Layer with the counts. Default: `X`.
    cluster_key
        Column of `.obs` with clusters, for the baseline ``"cluster_mean"`` and for the networks of ``preset="paper"``.
        Cells without a label are a cluster of their own in the baseline. With ``preset="paper"`` they are left out of
        the data. Default: one cluster for the baseline; ``preset="paper"`` clusters the held-in counts. Clusters that
        were found with all counts have seen the held-out ones, which favours ``"cluster_mean"``.
    preset
        Preset of :func:`~scanpy_cnnimpute.pp.cnn_impute`.
    settings
        Settings of that preset by name, as in :func:`~scanpy_cnnimpute.pp.cnn_impute`. ``preset="default"`` also takes
        ``"gate"``, except with ``how="masking"``, whose conditional estimate has no gate.
    count_type
        Whether molecules or reads were counted; see :func:`~scanpy_cnnimpute.pp.dropout_prob`. For ``"molecules"`` and
        ``"thinning"`` reads become molecules first, and the scores are of molecules: one molecule gives many reads, so
        that parts of the reads hold the same molecules.
    share
        Share of the molecules that is held in, for ``"molecules"`` and ``"thinning"``.
    capture_efficiency
        For ``"molecules"``: share of the molecules of a cell that the counts hold, if known. The two sets then share
        molecules, as two independent captures of the cell would. Default: they share none.
    n_seeds
        Number of repetitions.
    random_state
        Seed of the first repetition. The seeds of the others follow it.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per method, ``"cnn_impute"`` and those of :data:`~scanpy_cnnimpute.metrics.BASELINES`. For
    each score it has the median over the repetitions and, as ``<score>_range``, the difference between the largest and
    the smallest. ``.uns[key_added]`` holds it as ``table``, the single values as ``scores`` (one row per method and
    seed), and ``params``. The scores are

    - for ``"molecules"``: ``deviance``, the mean Poisson deviance of the held-out counts, and their ``mse``. For the
      deviance, predictions below 1 % of the mean rate of the gene are raised to it, and genes without a held-in
      molecule are left out;
    - for ``"masking"``: ``mse``, ``pcc`` and ``gene_pcc`` (the median over genes) of log1p(counts) at the masked
      entries;
    - for ``"thinning"``: ``mse`` and ``pcc`` of log1p(counts per 10,000) at all entries, ``mse_zeros`` and
      ``pcc_zeros`` at the zeros of the thinned counts. Estimates are normalised by the library size before imputation.
      For ``"cnn_impute"`` also scores of the dropout probabilities at these zeros: ``auroc``, ``brier`` and ``ece``
      (expected calibration error).

    Raises
    ------
    KeyError
        If `layer` or `cluster_key` does not exist.
    TypeError, ValueError
        If the counts are not whole numbers, an argument has another type or value than those allowed, or `key_added` is
        taken.

    Notes
    -----
    Memory: the held-in and the held-out counts and one imputed layer, all sparse; estimates are computed and scored in
    blocks of cells. The imputed layer is the largest, see :func:`~scanpy_cnnimpute.pp.cnn_impute`; for ``"masking"``
    with the default preset it has all entries of the genes that are kept. 2,638 cells x 16,579 genes with 2.2 million
    non-zeros peak at 1.5 GB, of which Python and its libraries take 0.9 GB.

    Molecular cross-validation: Batson, Royer and Webber, bioRxiv 786269. Masking: the paper, "cnnImpute accurately
    recovers missing value". The area under the ROC curve comes from a histogram of the probabilities and is accurate
    to 1e-4.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:60, :200].copy()
    >>> table = scnn.tl.eval_imputation(adata, how="masking", settings={"n_steps": 2}, n_seeds=1)
    >>> "cnn_impute" in table.index
    True
    """
    check_adata(adata, caller="tl.eval_imputation", in_memory=False)
    check_choice("how", how, get_args(How))
    check_choice("preset", preset, presets())
    check_choice("count_type", count_type, get_args(CountType))
    settings = _check_settings(settings, preset, how)
    _check_shares(how, share, capture_efficiency)
    n_seeds = check_number("n_seeds", n_seeds, int, 1)
    random_state = check_number("random_state", random_state, int, 0, MAX_SEED + 1 - n_seeds)
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_imputation", key=key_added, keys=[])
    everything = open_counts(adata, layer, caller="tl.eval_imputation")
    counts, labels = _select_cells(adata, everything, cluster_key, preset, random_state)
    if how != "masking":
        count_type = resolve_count_type(Counts.of(counts), count_type, caller="tl.eval_imputation")
        counts = molecules_of(counts, random_state) if count_type == "reads" else counts

    rows = []
    for seed in range(random_state, random_state + n_seeds):
        if how == "molecules":
            scores = _score_molecules(counts, labels, preset, settings, seed, share, capture_efficiency)
        elif how == "masking":
            scores = _score_masking(counts, labels, preset, settings, seed)
        else:
            scores = _score_thinning(counts, labels, preset, settings, seed, share)
        rows += [{"method": name, "seed": seed, **values} for name, values in scores.items()]
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
            "settings": settings,
            "count_type": count_type,
            "share": share,
            "capture_efficiency": capture_efficiency,
            "n_seeds": n_seeds,
            "random_state": random_state,
        },
    )
    return table.copy()


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Median and range over the seeds, one row per method, in their order."""
    groups = scores.drop(columns="seed").groupby("method", sort=False)
    median = groups.median()
    spread = (groups.max() - groups.min()).add_suffix("_range")
    both = [column for name in median.columns for column in (name, f"{name}_range")]
    return median.join(spread)[both]


def _check_settings(settings: Any, preset: str, how: str) -> dict[str, Any]:
    """Return the settings that are not None, checked against those of the preset."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        msg = f"settings={settings!r} has type {type(settings).__name__}, expected a dict: values by name of setting."
        raise TypeError(msg)
    estimate = "conditional" if how == "masking" or preset == "paper" else None
    imputer = find_imputer(preset, estimate)
    names = imputer.settings_type.names()
    if preset == "default" and how != "masking":
        names.append("gate")
    unknown = [name for name in settings if name not in names]
    if unknown:
        msg = (
            f"settings={settings!r}: {unknown} cannot be set for preset={preset!r} and how={how!r}. "
            f"Available: {names}. The other keywords of pp.cnn_impute are chosen by tl.eval_imputation."
        )
        raise ValueError(msg)
    given = {name: value for name, value in settings.items() if value is not None}
    if "gate" in given:
        check_number("gate", given["gate"], bool)
    resolve_settings(imputer, imputer.estimates[0], {name: value for name, value in given.items() if name != "gate"})
    return given


def _check_shares(how: str, share: Any, capture_efficiency: Any) -> None:
    values = {"share": share}
    if capture_efficiency is not None:
        values["capture_efficiency"] = capture_efficiency
    for name, value in values.items():
        check_share(name, value)
    if capture_efficiency is not None and how != "molecules":
        msg = f"capture_efficiency={capture_efficiency!r} is only used by how='molecules', not {how!r}: leave it out."
        raise ValueError(msg)


def _select_cells(
    adata: AnnData, counts: Counts, cluster_key: str | None, preset: str, random_state: int
) -> tuple[sp.csr_array, pd.Categorical | None]:
    """Counts and clusters of the cells to score; the paper has no network for cells without a cluster.

    Of counts that are not in memory, they are a draw of as many cells as a model is fitted to.
    """
    cells = np.arange(counts.shape[0])
    if not isinstance(counts, CountsInMemory) and cells.size > MAX_CELLS:
        cells = np.sort(np.random.default_rng(random_state).choice(cells.size, MAX_CELLS, replace=False))
        logger.info("tl.eval_imputation: %d cells are drawn out of %d", cells.size, counts.shape[0])
    if cluster_key is None:
        return counts.rows(cells), None
    check_key("cluster_key", cluster_key)
    codes, names = cluster_codes(adata, cluster_key, caller="tl.eval_imputation")
    codes = codes[cells]
    labels = pd.Categorical.from_codes(codes, categories=names)
    if preset == "paper" and (codes < 0).any():
        logger.info(
            "tl.eval_imputation: %d of %d cells have no label in adata.obs[%r] and are left out",
            np.count_nonzero(codes < 0),
            codes.size,
            cluster_key,
        )
        return counts.rows(cells[codes >= 0]), labels[codes >= 0]
    return counts.rows(cells), labels


class _Imputed:
    """The imputation of held-in counts, in blocks of cells."""

    def __init__(
        self,
        counts: sp.csr_array,
        labels: pd.Categorical | None,
        preset: str,
        settings: Mapping[str, Any],
        *,
        estimate: str,
        capture_efficiency: float | None,
        seed: int,
    ) -> None:
        from .. import pp  # which imports tl

        self._adata = part = AnnData(counts)
        options: dict[str, Any] = {}
        if preset == "paper":
            if labels is not None:
                part.obs["clusters"] = labels
                options["cluster_key"] = "clusters"
        elif estimate == "conditional":
            # Every zero is imputed. The layer of ones takes no memory: it is one number.
            part.layers["dropout_prob"] = np.broadcast_to(np.float32(1), counts.shape)
            options |= {"estimate": estimate, "threshold": 0.0}
        else:
            options["estimate"] = estimate
            pp.dropout_prob(
                part, count_type="umi", capture_efficiency=capture_efficiency, random_state=seed, store="params"
            )
        pp.cnn_impute(part, preset=preset, random_state=seed, store="layer", verbose=False, **{**options, **settings})

    def rows(self, rows: slice) -> np.ndarray:
        """Imputed counts of some cells, dense."""
        return self._adata.layers["cnn_imputed"][rows].toarray()

    def dropout_prob(self, rows: slice) -> np.ndarray:
        """Dropout probabilities of some cells, dense."""
        from .. import get

        return get.dropout_prob(self._adata, cells=rows)


def _estimates(imputed: _Imputed, baselines: Baselines) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Estimates of all methods for one block of cells after the other."""
    with single_threaded_blas():
        for rows in row_blocks(*baselines.counts.shape):
            values = {name: baselines.rows(name, rows) for name in metrics.BASELINES}
            yield rows, {"cnn_impute": imputed.rows(rows), **values}


def _score_masking(
    counts: sp.csr_array, labels: pd.Categorical | None, preset: str, settings: Mapping[str, Any], seed: int
) -> dict[str, dict[str, float]]:
    masked = metrics.mask_nonzeros(counts, random_state=seed)
    imputed = _Imputed(
        masked.counts, labels, preset, settings, estimate="conditional", capture_efficiency=None, seed=seed
    )
    baselines = Baselines(masked.counts, clusters=labels, random_state=seed)
    predicted = {name: np.empty(masked.truth.size) for name in ("cnn_impute", *metrics.BASELINES)}
    for rows, estimates in _estimates(imputed, baselines):
        part = slice(*np.searchsorted(masked.rows, [rows.start, rows.stop]))  # masked entries are in the order of rows
        for name, values in estimates.items():
            predicted[name][part] = values[masked.rows[part] - rows.start, masked.columns[part]]
    truth = np.log1p(masked.truth)
    return {
        name: {
            "mse": metrics.mse(truth, np.log1p(values)),
            "pcc": metrics.pcc(truth, np.log1p(values)),
            "gene_pcc": metrics.gene_pcc(truth, np.log1p(values), masked.columns),
        }
        for name, values in predicted.items()
    }


def _score_thinning(
    counts: sp.csr_array,
    labels: pd.Categorical | None,
    preset: str,
    settings: Mapping[str, Any],
    seed: int,
    share: float,
) -> dict[str, dict[str, float]]:
    thinned = metrics.thin_counts(counts, capture_efficiency=share, random_state=seed)
    imputed = _Imputed(
        thinned, labels, preset, settings, estimate="posterior_mean", capture_efficiency=share, seed=seed
    )
    baselines = Baselines(thinned, clusters=labels, random_state=seed)
    target = log_normalised(counts, TARGET_SUM)
    # Estimates are normalised by the library size before imputation; cells without counts are estimated as 0.
    to_target_sum = TARGET_SUM / np.maximum(thinned.sum(axis=1), 1)[:, None]
    scores = {name: (PairedScores(), PairedScores()) for name in ("cnn_impute", *metrics.BASELINES)}
    calibration = Calibration()
    for rows, estimates in _estimates(imputed, baselines):
        truth = target[rows].toarray()
        zero = thinned[rows].toarray() == 0
        truth_at_zeros = truth[zero]
        for name, values in estimates.items():
            estimate = np.log1p(values * to_target_sum[rows])
            everywhere, at_zeros = scores[name]
            everywhere.add(truth, estimate)
            at_zeros.add(truth_at_zeros, estimate[zero])
        calibration.add(truth_at_zeros > 0, imputed.dropout_prob(rows)[zero])
    found = {
        name: {
            "mse": everywhere.mse,
            "pcc": everywhere.pcc,
            "mse_zeros": at_zeros.mse,
            "pcc_zeros": at_zeros.pcc,
        }
        for name, (everywhere, at_zeros) in scores.items()
    }
    found["cnn_impute"] |= {"auroc": calibration.auroc, "brier": calibration.brier, "ece": calibration.ece}
    return found


def _score_molecules(
    counts: sp.csr_array,
    labels: pd.Categorical | None,
    preset: str,
    settings: Mapping[str, Any],
    seed: int,
    share: float,
    capture_efficiency: float | None,
) -> dict[str, dict[str, float]]:
    train, test = metrics.split_molecules(counts, share=share, capture_efficiency=capture_efficiency, random_state=seed)
    imputed = _Imputed(train, labels, preset, settings, estimate="expected_count", capture_efficiency=share, seed=seed)
    baselines = Baselines(train, clusters=labels, random_state=seed)
    # From the depth of the first set to that of the second.
    scale = (test.sum(dtype=np.float64) / max(train.sum(dtype=np.float64), 1)) or 1.0
    min_rate = MIN_RATE * scale * train.mean(axis=0)
    predictable = np.flatnonzero(min_rate)  # genes with a molecule in the first set
    scores = {name: (Deviance(), PairedScores()) for name in ("cnn_impute", *metrics.BASELINES)}
    for rows, estimates in _estimates(imputed, baselines):
        held_out = test[rows].toarray()
        if preset == "default":
            # The default, told the share, estimates both sets together; where the first has none, all is in the second.
            zero = train[rows].toarray() == 0
            estimates["cnn_impute"][zero] /= share * scale
        for name, values in estimates.items():
            expected = scale * values
            deviance, paired = scores[name]
            deviance.add(held_out[:, predictable], np.maximum(expected, min_rate)[:, predictable])
            paired.add(held_out, expected)
    return {name: {"deviance": deviance.mean, "mse": paired.mse} for name, (deviance, paired) in scores.items()}
