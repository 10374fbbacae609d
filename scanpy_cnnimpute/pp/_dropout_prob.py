"""``pp.dropout_prob``: how probable it is that each zero is a dropout."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from .._anndata.counts import check_adata, open_counts
from .._anndata.fingerprint import add_fingerprint
from .._anndata.models import DROPOUT_FUNCTION, MASK, add_record, dropout_keys, layer_checksum
from .._anndata.results import Results, all_or_nothing, as_series, check_keys, cluster_codes
from .._anndata.selection import selected_genes
from .._checks import check_choice, check_key, check_number, check_seed
from .._counts import DaskCounts
from .._logging import logger
from .._progress import show_progress
from .._threads import check_n_jobs, limited_threads
from ..dropout import MODELS, BlockProbabilities, Clusters, DropoutFit, ModelledDropout, check_efficiency
from ..dropout.protocols import PROTOCOLS, find_protocol
from ..dropout.read_counts import CountType, resolve_count_type
from ..tl._cluster import cluster_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from .._counts import Counts

Store = Literal["auto", "layer", "params"]
DEFAULT_CLUSTER_KEY = "cnn_cluster"
MAX_LAYER_BYTES = 2**30  # 1 GiB: a laptop holds it beside the counts
MAX_STORED_BYTES = 2**60  # far above any memory, and within what files can hold
FEW_DROPOUTS = 0.01  # mean probability of the zeros below which a warning says so
MAX_COLLAPSED = 0.5  # share of collapsed genes above which a cluster is warned of


def dropout_prob(
    adata: AnnData,
    *,
    layer: str | None = None,
    cluster_key: str | None = None,
    model: str = "calibrated",
    count_type: CountType = "auto",
    capture_efficiency: float | str | None = None,
    mask_var: str | np.ndarray | None = None,
    random_state: int = 0,
    store: Store = "auto",
    max_layer_bytes: int = MAX_LAYER_BYTES,
    key_added: str = "dropout_prob",
    n_jobs: int | None = None,
    verbose: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Estimate for every entry the probability that it is a dropout.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    layer
        Layer with the counts. Default: `X`.
    cluster_key
        Column of `.obs` with clusters. The calibrated model needs none; if they are given, its summary has a row for
        each. The gamma-normal model is fitted in each; by default in ``"cnn_cluster"``, which
        :func:`~scanpy_cnnimpute.tl.cluster` with ``method="adp"`` computes first if it is not there.
    model
        ``"calibrated"``: the probability that the transcript was present though none was counted, given what is
        expected of the gene in the cell, its library size and the capture efficiency. ``"gamma_normal"``: the paper's
        mixture of a gamma (dropouts) and a normal distribution on log10(CPM + 1.01).
    count_type
        Calibrated model: ``"umi"`` if molecules were counted, ``"reads"`` if reads were, as by Smart-seq2. Reads become
        molecules first: how many reads a molecule gives, by cell and gene, is estimated from how zeros fall with what
        is expected. ``"auto"`` decides by the same, and logs the figure.
    capture_efficiency
        Calibrated model: share of the molecules that was counted, between 0 and 1; the column of `.obs` that holds it
        for each cell, as estimated from spike-ins; or the name of a protocol, such as ``"10x_v3"``, out of
        :data:`scanpy_cnnimpute.dropout.protocols.PROTOCOLS`, which holds published figures. It cannot be estimated from
        the counts. Default: missing is what a deeper run would still count, that is 4,000 more molecules of the cell,
        or at most 1.65 times those that were counted. That is cautious: state the protocol where a tenth or less of the
        molecules was counted (Notes).
    mask_var
        Genes to write the layer for: a boolean column of `.var`, or a boolean array. The layer is 0 for the others.
        The model is fitted to all genes: :func:`~scanpy_cnnimpute.pp.cnn_impute` and
        :func:`~scanpy_cnnimpute.get.dropout_prob` use it for the others, too. Default: all.
    random_state
        Seed of the calibrated model.
    store
        ``"layer"`` writes the probabilities as a dense layer besides the parameters, ``"params"`` does not,
        ``"auto"`` does if it takes at most `max_layer_bytes`.
    max_layer_bytes
        Largest layer that ``store="auto"`` writes.
    key_added
        Key of the results.
    n_jobs
        Threads of numba and BLAS; the results do not depend on them. Default: one per core.
    verbose
        Show progress bars with the time left, in a log as lines.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` float32 probabilities, if `store` says so. At counts 0 (calibrated) or at most 0.4; 0 for
        genes that are not modelled (in the cell's cluster) and for cells without counts.
    ``.obs[f"{key_added}_library_size"]``
        Total counts of each cell.
    ``.obs[f"{key_added}_capture_efficiency"]``
        Calibrated: share of the molecules counted, as given or assumed.
    ``.obs[f"{key_added}_reads_per_molecule"]``, ``.varm[f"{key_added}_reads_factor"]``
        Calibrated, if reads were counted: how many the average molecule gives in each cell, and, ``(n_vars, 1)``, how
        many one of the gene gives relative to it. Rather too many: differences between cells that the model does not
        know look the same.
    ``.obsm[f"{key_added}_scores"]``, ``.varm[f"{key_added}_loadings"]``
        Calibrated: ``(n_obs, 20)`` and ``(n_vars, 20)`` float32, whose product is the expected count of molecules.
    ``.varm[f"{key_added}_shape"]``
        Calibrated: ``(n_vars, 1)`` shape of the negative binomial distribution around it; small is over-dispersed.
    ``.varm[f"{key_added}_gain"]``
        Calibrated: ``(n_vars, 1)`` how much better held-out molecules were predicted than by the gene's mean or, if
        that gain is larger, by leaving the zeros, in standard errors; NaN if there was nothing to compare.
    ``.varm[f"{key_added}_{name}"]``
        Gamma-normal: ``(n_vars, n_clusters)`` float64, for the names ``rate`` (proportion of the gamma),
        ``alpha`` and ``beta`` (its shape and rate), ``mu`` and ``sigma`` (mean and standard deviation of the normal),
        in units of log10(CPM + 1.01); NaN where nothing was fitted. ``status``: 0 for modelled genes, otherwise why
        not, as a position in :data:`scanpy_cnnimpute.dropout.gamma_normal.model.STATUSES`. Columns are
        ``.uns[key_added]["clusters"]``.
    ``.obs[f"{key_added}_cluster"]``
        Gamma-normal: position of the cell's cluster in ``.uns[key_added]["clusters"]``, -1 for none.
    ``.uns[key_added]``
        ``params``, ``written`` (the keys of this call), ``clusters`` (names), ``summary``: per cluster
        ``n_cells``, ``n_modelled`` (genes) and ``zeros_called`` (share of its zeros with a probability above 0.5);
        for the gamma-normal model ``collapsed``, the share of modelled genes whose gamma describes the zeros alone;
        for the calibrated model ``dropouts`` (mean probability of its zeros; both of at most 2,000 cells) and ``gain``
        (share of the genes that gain). For the calibrated model also ``reliability``: stated probability against
        observed share at zeros of one part of the molecules, whose other part is the truth. It judges what is expected
        and its spread (fitted to the same split), not the capture efficiency.

    The further keys that start with `key_added` complete the model: with them :func:`~scanpy_cnnimpute.pp.cnn_impute`
    goes on from this fit, and a fit that no longer belongs to the data is refused.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts and unknown options or keys.

    Notes
    -----
    Of thinned real counts of which 5 % were kept (zeisel, all entries, log1p(CP10k)), the error is .46 with the share
    stated and .67 by default, from 1.17; with 30 to 50 % kept the two differ by 1 to 9 %. Published figures are of
    sequencing near saturation: multiply them by the saturation of a shallower run, in a column of `.obs` or as a
    number.

    Calibrated: :class:`scanpy_cnnimpute.dropout.calibrated.CalibratedModel`. Gamma-normal: equations 1 and 2 of the
    paper with the published program's rules; see :func:`scanpy_cnnimpute.dropout.gamma_normal.fit_mixture`. Neither
    depends on the number of threads. :func:`scanpy_cnnimpute.get.dropout_prob` gives any part of the matrix without the
    layer.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.pp.dropout_prob(adata, capture_efficiency=0.2)
    >>> adata.layers["dropout_prob"].shape == adata.shape
    True
    """
    check_adata(adata, caller=DROPOUT_FUNCTION, in_memory=False)
    n_jobs, verbose = check_n_jobs(n_jobs), check_number("verbose", verbose, bool)
    check_number("copy", copy, bool)
    request = DropoutRequest(
        layer=layer,
        cluster_key=cluster_key,
        model=model,
        count_type=count_type,
        capture_efficiency=capture_efficiency,
        random_state=random_state,
        store=store,
        max_layer_bytes=max_layer_bytes,
        key_added=key_added,
    ).checked()
    selected = selected_genes(adata, mask_var)
    adata = adata.copy() if copy else adata
    with limited_threads(n_jobs), show_progress(verbose), all_or_nothing(adata):
        fit_and_store(adata, open_counts(adata, layer, caller=DROPOUT_FUNCTION), request, selected)
    return adata if copy else None


@dataclass(frozen=True, kw_only=True)
class DropoutRequest:
    """The keywords of :func:`dropout_prob` that are kept as parameters."""

    layer: str | None = None
    cluster_key: str | None = None
    model: str = "calibrated"
    count_type: CountType = "auto"
    capture_efficiency: float | str | None = None
    random_state: int = 0
    store: Store = "params"
    max_layer_bytes: int = MAX_LAYER_BYTES
    key_added: str = "dropout_prob"

    def checked(self) -> DropoutRequest:
        """The request with plain numbers, if all of it is known and goes together."""
        check_choice("model", self.model, MODELS)
        check_choice("store", self.store, get_args(Store))
        plain = {
            "max_layer_bytes": check_number("max_layer_bytes", self.max_layer_bytes, int, 0, MAX_STORED_BYTES),
            "random_state": check_seed(self.random_state),
        }
        check_choice("count_type", self.count_type, get_args(CountType))
        told = {"capture_efficiency": self.capture_efficiency is not None, "count_type": self.count_type != "auto"}
        for name, is_told in told.items():
            if is_told and not MODELS[self.model].counts_molecules:
                msg = f"{name}={getattr(self, name)!r} means nothing to model={self.model!r}: leave it out."
                raise ValueError(msg)
        if self.cluster_key is not None:
            check_key("cluster_key", self.cluster_key)
        check_keys(self.cluster_key or DEFAULT_CLUSTER_KEY, key_added=self.key_added)
        return replace(self, **plain)


def fit_and_store(adata: AnnData, counts: Counts, request: DropoutRequest, selected: np.ndarray) -> ModelledDropout:
    """Fit a model to the counts, write what the request asks for, and return the fit as it is stored."""
    key = request.key_added
    keys = [("layers", key), ("varm", f"{key}_{MASK}"), *dropout_keys(key)]
    results = Results(adata, function=DROPOUT_FUNCTION, key=key, keys=keys)
    n_counted = counts.totals.nnz
    if n_counted == 0:
        msg = f"No cell has any counts: there is nothing to fit in {adata.n_obs} cells x {adata.n_vars} genes."
        raise ValueError(msg)
    efficiency = _read_efficiency(adata, request.capture_efficiency, counts.totals.n_genes > 0)
    count_type: str = request.count_type
    if MODELS[request.model].counts_molecules:
        count_type = resolve_count_type(counts, request.count_type, caller=DROPOUT_FUNCTION)
    clusters, cluster_key = _read_clusters(adata, counts, request)
    fit = MODELS[request.model].fit(
        counts,
        clusters=clusters,
        capture_efficiency=efficiency,
        count_type=count_type,
        random_state=request.random_state,
    )
    dropout = ModelledDropout(counts, fit.model, fit.cells)
    layer = _add_layer(results, dropout, request, selected)
    reported = clusters or fit.model.clusters(fit.cells)
    summary = fit.model.summary(counts, fit.cells, reported)
    summary.index = pd.Index(reported.names, name="cluster")
    params = vars(request) | {"cluster_key": cluster_key, "count_type": count_type, "units": "probability"}
    del params["key_added"]
    # Not how the results are stored: the same fit, asked for again, is the same.
    identity: list[Any] = [
        request.model,
        request.layer,
        request.random_state,
        cluster_key if fit.model.needs_clusters else None,
    ]
    identity.append(None if efficiency is None else zlib.crc32(np.ascontiguousarray(efficiency).data))
    if count_type == "reads":
        identity.append(count_type)
    record = {
        **fit.tables,
        "summary": summary,
        "clusters": np.array(fit.model.clusters(fit.cells).names, dtype=str),
        "arrays": add_record(results, key, fit.model) | add_record(results, key, fit.cells),
        "fingerprint": add_fingerprint(results, key, adata, counts, identity),
    }
    if layer is not None:
        record["layer_checksum"] = layer_checksum(layer)
    results.write(record, params)
    _report(fit, summary, key, has_zeros=n_counted < counts.shape[0] * counts.shape[1])
    return dropout


def _read_efficiency(adata: AnnData, capture_efficiency: float | str | None, counted: np.ndarray) -> np.ndarray | None:
    """Capture efficiency of every cell; None if it is not given."""
    if capture_efficiency is None:
        return None
    if isinstance(capture_efficiency, str):
        if capture_efficiency not in adata.obs:
            protocol = find_protocol(capture_efficiency)
            if protocol is not None:
                return np.full(adata.n_obs, protocol.efficiency)
            msg = (
                f"capture_efficiency={capture_efficiency!r} is not in adata.obs. Available: {list(adata.obs.columns)}, "
                f"and the protocols {list(PROTOCOLS)}."
            )
            raise KeyError(msg)
        column = as_series(adata.obs[capture_efficiency])
        if not pd.api.types.is_numeric_dtype(column):
            msg = f"adata.obs[{capture_efficiency!r}] has dtype {column.dtype}, expected numbers."
            raise TypeError(msg)
        efficiency = column.to_numpy(np.float64, na_value=np.nan)
        name = f"adata.obs[{capture_efficiency!r}]"
    else:
        if np.ndim(capture_efficiency):
            msg = "capture_efficiency is an array: put it into a column of adata.obs and pass the name of the column."
            raise TypeError(msg)
        value = check_number("capture_efficiency", capture_efficiency, float)
        efficiency, name = np.full(adata.n_obs, float(value)), f"capture_efficiency={capture_efficiency!r}"
    return check_efficiency(efficiency, counted, where=name)


def _read_clusters(adata: AnnData, counts: Counts, request: DropoutRequest) -> tuple[Clusters | None, str | None]:
    """The clusters that the model or its summary needs, and where they are; computed if the model needs some."""
    key = request.cluster_key
    if not MODELS[request.model].needs_clusters:
        return (None, None) if key is None else (labelled_clusters(adata, key, caller=DROPOUT_FUNCTION), key)
    if key is None:
        key = DEFAULT_CLUSTER_KEY
        if key not in adata.obs:
            cluster_cells(adata, counts.load(), method="adp", layer=request.layer, key_added=key)
    codes, names = cluster_codes(adata, key, caller=DROPOUT_FUNCTION)
    return Clusters(codes=codes, names=names), key


def labelled_clusters(adata: AnnData, cluster_key: str, *, caller: str) -> Clusters:
    """Clusters for reports: cells without a label are a cluster named ``"unlabelled"``."""
    codes, names = cluster_codes(adata, cluster_key, caller=caller)
    if (codes >= 0).all():
        return Clusters(codes=codes, names=names)
    name = "unlabelled"
    while name in names:
        name += "_"
    return Clusters(codes=np.where(codes < 0, len(names), codes), names=[*names, name])


def _add_layer(results: Results, dropout: ModelledDropout, request: DropoutRequest, selected: np.ndarray) -> Any:
    """Add the layer of the selected genes to the results, if it is asked for, small or lazy; return it."""
    counts, key = dropout.counts, request.key_added
    is_lazy = isinstance(counts, DaskCounts)
    n_bytes = 4 * counts.shape[0] * counts.shape[1]
    if request.store == "params":
        return None
    if request.store == "auto" and not is_lazy and n_bytes > request.max_layer_bytes:
        logger.warning(
            "pp.dropout_prob: the layer would take %.3g GB, more than max_layer_bytes (%.3g GB); only the parameters "
            "are stored. get.dropout_prob gives any part of it, pp.cnn_impute works with the parameters.",
            n_bytes / 1e9,
            request.max_layer_bytes / 1e9,
        )
        return None
    if not selected.all():
        results.add("varm", f"{key}_{MASK}", selected[:, None])
    describe = BlockProbabilities.of(dropout.model, selected)
    layer: Any
    if isinstance(counts, DaskCounts):
        layer = counts.lazily(describe, by_cell=dropout.description, container=np.ndarray, dtype=np.dtype(np.float32))
    else:
        layer = np.zeros(counts.shape, dtype=np.float32)
        for rows, block in counts.blocks():
            describe.put_in(layer[rows[0] : rows[-1] + 1], block, dropout.description(rows))
    results.add("layers", key, layer)
    return layer


def _report(fit: DropoutFit, summary: pd.DataFrame, key: str, *, has_zeros: bool) -> None:
    """Log what the fit says, in one line, and warn of mixtures that have collapsed."""
    called = np.average(summary["zeros_called"], weights=summary["n_cells"])
    logger.info("pp.dropout_prob: %.1f %% of the zeros have a dropout probability above 0.5", 100 * called)
    if getattr(fit.cells, "reads_per_molecule", None) is not None:
        logger.info(
            "pp.dropout_prob: a molecule gives %.0f reads in the median cell (%.0f to %.0f in half of the cells), and "
            "%.2g to %.2g times as many in eight of ten genes",
            *np.quantile(fit.cells.reads_per_molecule, [0.5, 0.25, 0.75]),  # type: ignore[attr-defined]
            *np.quantile(fit.model.reads_factor, [0.1, 0.9]),  # type: ignore[attr-defined]
        )
    if has_zeros and fit.model.gain is not None and summary["dropouts"].max() < FEW_DROPOUTS:
        logger.warning(
            "pp.dropout_prob: hardly any zero is a probable dropout (%.2g %%), as nearly all molecules count as seen; "
            "state a lower capture_efficiency=, a number or a protocol, if more is missing than a deeper run would "
            "count%s.",
            100 * summary["dropouts"].max(),
            "" if getattr(fit.model, "count_type", None) == "reads" else ", or count_type='reads' if these are reads",
        )
    if "collapsed" in summary and (summary["collapsed"] > MAX_COLLAPSED).any():
        logger.warning(
            "pp.dropout_prob: in %d of %d clusters the gamma of most genes has collapsed onto the zeros: their "
            "probabilities say that a zero is a zero, not that a transcript was missed (uns[%r]['summary']). "
            "model='calibrated' has no such fault.",
            int((summary["collapsed"] > MAX_COLLAPSED).sum()),
            len(summary),
            key,
        )
