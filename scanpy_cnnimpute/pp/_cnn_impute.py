"""``pp.cnn_impute``: predict probable dropouts from correlated genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._anndata.counts import check_adata, open_counts
from .._anndata.fingerprint import add_fingerprint
from .._anndata.models import IMPUTE_FUNCTION, add_record, imputer_keys
from .._anndata.results import Results, all_or_nothing, cluster_codes
from .._anndata.selection import selected_genes
from .._checks import check_choice, check_number
from .._progress import show_progress
from .._threads import check_n_jobs, limit_keras, limited_threads
from ..dropout import ModelledDropout
from ..dropout.read_counts import CountType  # noqa: TC001 - the command line reads its choices
from ..imputation import Entries  # noqa: TC001 - the command line reads its choices
from ._dropout_prob import Store  # noqa: TC001 - the command line reads its choices
from ._outputs import add_layers, history_table, status_table, summary_table
from ._report import report
from ._request import ImputeRequest, choose
from ._sources import dropout_of, fit_options, opened_checkpoint, refuse_remnants

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from anndata import AnnData

    from .._finished import FinishedParts

DEFAULT_KEYS = {"zeros": "cnn_imputed", "all": "cnn_denoised"}
HOW_STORED = {"store", "max_layer_bytes", "return_std", "std_units"}
"""Parameters of what is written: the same fit, asked for again, is the same."""
MAX_LAYER_BYTES = 2**32  # 4 GiB: the result that is asked for, on a machine of 16 GB


def cnn_impute(
    adata: AnnData,
    *,
    preset: str = "default",
    layer: str | None = None,
    dropout_key: str = "dropout_prob",
    cluster_key: str | None = None,
    count_type: CountType = "auto",
    entries: Entries = "zeros",
    estimate: str | None = None,
    gate: bool | None = None,
    mask_var: str | np.ndarray | None = None,
    return_std: bool = False,
    store: Store = "auto",
    max_layer_bytes: int = MAX_LAYER_BYTES,
    threshold: float | None = None,
    n_top: int | None = None,
    learning_rate: float | None = None,
    n_steps: int | None = None,
    depth: float | None = None,
    n_components: int | None = None,
    n_folds: int | None = None,
    n_targets: int | None = None,
    max_dropout: float | None = None,
    log: bool | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    patience: int | None = None,
    validation_fraction: float | None = None,
    random_state: int = 0,
    key_added: str | None = None,
    checkpoint: str | Path | None = None,
    n_jobs: int | None = None,
    verbose: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Predict the counts of probable dropouts with convolutional networks.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    preset
        ``"default"``: what is recommended, one network for all cells. ``"paper"``: the published procedure with the
        published numbers, networks per cluster and subset of genes. The settings below that are not given have the
        preset's values.
    layer
        Layer with the counts. Default: `X`.
    dropout_key
        Where :func:`~scanpy_cnnimpute.pp.dropout_prob` stored its model, which is used as it is; it is fitted first if
        nothing is there. If there is a layer with this name, its probabilities are used, also if you changed them
        or made them yourself.
    cluster_key
        Column of `.obs` with clusters. The default preset needs none; if they are given, the summary has a row for
        each. The paper's preset trains networks in each: by default in the clusters of the dropout model; for a dropout
        layer of your own in ``"cnn_cluster"`` if it is there, else in all cells together.
    count_type
        Whether molecules or reads were counted, for a calibrated dropout model that is fitted on the way; see
        :func:`~scanpy_cnnimpute.pp.dropout_prob`. Observed reads stay as they are, and zeros are filled with reads.
    entries
        ``"zeros"`` predicts probable dropouts and leaves observed counts as they are. ``"all"`` denoises: every entry
        becomes its posterior mean given its own count, with the same dropout model and network.
    estimate
        ``"posterior_mean"``: the expected value of a zero, given the molecules that its dropout probability implies,
        corrected by the network, on the scale of log1p(CP10k); for log-normalised data. ``"expected_count"``: the same
        on the scale of counts, which is larger; for sums over cells. Both need a calibrated dropout model.
        ``"conditional"``: what the network predicts a count to be if it is not zero. Default: the first where it is
        possible, else the last. With ``entries="all"`` the first is the mean of log1p(CP10k) of new counts of the entry
        at library size `depth`, turned back into counts, which add up to less than that; the second is their mean, for
        sums over cells and genes.
    gate
        Leave a gene as it is, in all cells, if its held-out molecules were predicted worse than by the gene's mean and
        worse than by zeros, by more than five standard errors each. Default: on with a calibrated model, off with
        ``preset="paper"``.
    mask_var
        Genes to impute: a boolean column of `.var`, or a boolean array. All genes serve as inputs, the others stay as
        they are. Default: all.
    return_std
        Default preset: also write the standard deviations.
    store
        ``"layer"`` writes the imputed counts as a layer besides the fitted imputer, ``"params"`` does not (see
        :func:`~scanpy_cnnimpute.get.cnn_imputed`), ``"auto"`` does if it takes at most `max_layer_bytes`. Networks of
        ``preset="paper"`` are too large to be stored: its layer is always written. What an earlier call wrote under the
        same `key_added` is replaced; a layer that this call does not write goes.
    max_layer_bytes
        Largest layer that ``store="auto"`` writes.
    threshold
        A zero is imputed where its dropout probability is above this value (conditional and paper: 0.5; else 0.01).
    n_top
        Input genes chosen for each target gene (5).
    learning_rate
        Adam's learning rate (default: 1e-2 at the first step; paper: 1e-4).
    n_steps
        Default only: batches that the network is trained on (300).
    depth
        Denoising only: library size, in the unit of the counts, of the new counts that are meant, and so of the layer:
        genes that are left as they are come at that depth, too. The smaller, the fainter are the means of logarithms.
        Default: that of the cell.
    n_components
        Conditional only: most components of the low rank; fewer for fewer than ten cells each (30).
    n_folds
        Conditional only: parts of the non-zeros, each of which is hidden once (5).
    n_targets
        Paper only: target genes of one network (512).
    max_dropout
        Paper only: largest share of a cluster's cells in which an input gene may be called a dropout (0.5).
    log
        Paper only: train on log1p(counts) (``True``) or on counts, the paper's cnnImpute_nl (``False``).
    batch_size
        Paper only: cells in a training batch (32).
    max_epochs
        Paper only: most epochs a network is trained for (150).
    patience
        Paper only: epochs without a better validation loss before training stops (5).
    validation_fraction
        Paper only: share of the cells of a cluster kept for the validation loss (0.1).
    random_state
        Seed of the networks, and of a dropout model that is fitted on the way.
    key_added
        Key of the results. Default: ``"cnn_imputed"`` or, with ``entries="all"``, ``"cnn_denoised"``.
    checkpoint
        Paper only: folder in which finished networks are kept, so that the same call goes on from them after an
        interrupt. It stays until you delete it.
    n_jobs
        Threads of numba, BLAS and TensorFlow, which takes their number in its first call only. Default: one per core.
    verbose
        Show progress bars with the time left, in a log as lines.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes, besides what :func:`~scanpy_cnnimpute.pp.dropout_prob` writes if
    it has to run,

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` counts, the unit of the input, if `store` says so: observed counts bit-identical, dropouts
        predicted. CSR if the input is sparse, else dense; float32 where that holds the counts of the input, else
        float64. With ``entries="all"`` all entries of imputed genes are predicted, and it is dense. Normalise it with
        the library sizes of the observed counts, or with `depth`.
    ``.layers[f"{key_added}_std"]``
        With ``return_std=True``: ``(n_obs, n_vars)`` float32 standard deviations at the imputed entries, 0 elsewhere:
        of log1p(counts) around the conditional estimate, else of log1p(CP10k), of molecules if reads were counted; with
        ``entries="all"`` of that of new counts at `depth`.
    ``.uns[key_added]``
        ``params`` (with ``units``), ``written`` (the keys of this call); ``history``: DataFrame with
        ``cluster``, ``subset``, ``epoch``, ``loss``, ``val_loss`` (paper: of log1p counts, or counts with
        ``log=False``; default, at each check, the first before any training: Poisson deviance of held-out molecules
        but for a constant, or for the conditional estimate of hidden residuals in standard deviations);
        ``status``: DataFrame genes x clusters (default preset: one column ``"all"``), categorical: ``"imputed"`` or why
        not; ``summary``: per cluster numbers of cells, networks, genes with each status, and imputed entries. Without a
        layer, status and entries are those of 500 cells.

    The further keys that start with `key_added` are the fitted imputer of the default preset. A call that fails or is
    interrupted leaves the data as they were, also without a dropout model that it has fitted on the way: run
    :func:`~scanpy_cnnimpute.pp.dropout_prob` first to keep that.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts, unknown keys and values that are not allowed.
    RuntimeError
        If TensorFlow runs in graph mode in this process.

    Notes
    -----
    Paper: "CNN-based model construction". The same seed gives the same bits at the same number of threads.
    Seeds belong to positions: permuting cells or genes moves log1p of the values imputed by default by .018 (root mean
    square, five cell lines), as another seed does, and those of the other estimate and preset more.
    Keras runs the networks on the backend that is configured, on a GPU where the backend sees one. Memory beyond the
    counts: the imputed layer, some 200 MB of blocks, and with ``preset="paper"`` a network of 132 MB with its
    optimizer. A CSR layer takes 8 bytes per non-zero, more than a dense one when most zeros are imputed.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, n_steps=2)
    >>> adata.uns["cnn_imputed"]["params"]["units"]
    'counts'
    """
    check_adata(adata, caller=IMPUTE_FUNCTION, in_memory=False)
    n_jobs, verbose = check_n_jobs(n_jobs), check_number("verbose", verbose, bool)
    check_number("copy", copy, bool)
    default_key = DEFAULT_KEYS[check_choice("entries", entries, DEFAULT_KEYS)]
    request = ImputeRequest(
        preset=preset,
        layer=layer,
        dropout_key=dropout_key,
        cluster_key=cluster_key,
        count_type=count_type,
        entries=entries,
        estimate=estimate,
        gate=gate,
        return_std=return_std,
        store=store,
        max_layer_bytes=max_layer_bytes,
        random_state=random_state,
        key_added=default_key if key_added is None else key_added,
        settings={
            "threshold": threshold,
            "n_top": n_top,
            "learning_rate": learning_rate,
            "n_steps": n_steps,
            "depth": depth,
            "n_components": n_components,
            "n_folds": n_folds,
            "n_targets": n_targets,
            "max_dropout": max_dropout,
            "log": log,
            "batch_size": batch_size,
            "max_epochs": max_epochs,
            "patience": patience,
            "validation_fraction": validation_fraction,
        },
    ).checked()
    selected = selected_genes(adata, mask_var)
    adata = adata.copy() if copy else adata
    limit_keras(n_jobs)
    checkpoints = opened_checkpoint(checkpoint, preset)
    with limited_threads(n_jobs), show_progress(verbose), all_or_nothing(adata), checkpoints as finished:
        _impute(adata, request, selected, finished)
    return adata if copy else None


def _impute(adata: AnnData, request: ImputeRequest, selected: np.ndarray, checkpoint: FinishedParts | None) -> None:
    """Choose, read, fit, predict, write."""
    refuse_remnants(adata, request.dropout_key)
    choice, key = choose(adata, request), request.key_added
    if request.cluster_key is not None:
        cluster_codes(adata, request.cluster_key, caller=IMPUTE_FUNCTION)  # before the work, if it is wrong
    keys = [("layers", key), ("layers", f"{key}_std"), *imputer_keys(key)]
    results = Results(adata, function=IMPUTE_FUNCTION, key=key, keys=keys)
    counts = open_counts(adata, request.layer, caller=IMPUTE_FUNCTION)
    dropout = dropout_of(adata, counts, request)
    options = fit_options(adata, counts, dropout, request, choice, selected, checkpoint)
    imputer, predictions = choice.imputer.fit_predict(counts, dropout, options, return_std=request.return_std)
    n_imputed, has_layer = add_layers(results, counts, imputer, dropout, predictions, request)
    params = choice.params(request, has_layer=has_layer)
    if isinstance(dropout, ModelledDropout):
        params["count_type"] = getattr(dropout.model, "count_type", request.count_type)
    record = {
        "history": history_table(imputer.history),
        "status": status_table(imputer, options.clusters, adata.var_names),
        "summary": summary_table(imputer, options.clusters, n_imputed),
    }
    if imputer.is_stored:
        record["arrays"] = add_record(results, key, imputer)
        fitted_to = request.dropout_key if isinstance(dropout, ModelledDropout) else None
        identity = {name: value for name, value in params.items() if name not in HOW_STORED}
        record["fingerprint"] = add_fingerprint(results, key, adata, counts, identity, built_on=fitted_to)
        record["fingerprint"]["has_own_layer"] = dropout.has_layer
    results.write(record, params)
    report(imputer, n_imputed, counts, options.clusters)
