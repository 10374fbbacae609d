"""``pp.dropout_prob``: how probable it is that each zero is a dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from .. import tl
from .._counts import check_adata, get_counts
from .._logging import logger
from .._mixture_store import FUNCTION, probability_blocks, store_mixture, stored_keys
from .._results import Results, check_keys, cluster_codes
from ..mixture import fit_mixture
from ..presets import check_number

if TYPE_CHECKING:
    from anndata import AnnData

Model = Literal["gamma_normal"]
Store = Literal["auto", "layer", "params"]
DEFAULT_CLUSTER_KEY = "cnn_cluster"


def dropout_prob(
    adata: AnnData,
    *,
    layer: str | None = None,
    cluster_key: str | None = None,
    model: Model = "gamma_normal",
    store: Store = "auto",
    max_layer_bytes: int = 2**30,
    key_added: str = "dropout_prob",
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
        Column of `.obs` with clusters; a model is fitted in each. Default: ``"cnn_cluster"``, which
        :func:`~scanpy_cnnimpute.tl.cluster` computes first if it is not there.
    model
        ``"gamma_normal"``: the paper's mixture of a gamma (dropouts) and a normal distribution on log10(CPM + 1.01).
    store
        ``"layer"`` writes the probabilities as a dense layer besides the parameters, ``"params"`` does not,
        ``"auto"`` does if it takes at most `max_layer_bytes`.
    max_layer_bytes
        Largest layer that ``store="auto"`` writes.
    key_added
        Key of the results.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` float32 probabilities, see `store`. At counts at most 0.4; 0 for genes that are not
        modelled in the cell's cluster and for cells without a cluster.
    ``.varm[f"{key_added}_{name}"]``
        DataFrames, genes x clusters, float64, for the names ``rate`` (proportion of the gamma), ``alpha`` and
        ``beta`` (its shape and rate), ``mu`` and ``sigma`` (mean and standard deviation of the normal), in units of
        log10(CPM + 1.01); NaN where nothing was fitted. ``status``: categorical, ``"modelled"`` or why not.
    ``.obs[f"{key_added}_library_size"]``, ``.obs[f"{key_added}_cluster"]``
        Total counts and cluster of each cell, as used here, so that the parameters stay usable when genes or cells
        are dropped.
    ``.uns[key_added]``
        ``params``, ``written`` (the keys of this call), ``clusters`` (their names), ``summary``: per cluster
        the number of cells, of modelled genes, the share of its zeros with a probability above 0.5, and the
        share of modelled genes whose gamma has collapsed onto the zeros.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts and unknown options or keys.

    Notes
    -----
    Equations 1 and 2 of the paper with the published program's rules; see
    :func:`scanpy_cnnimpute.mixture.fit_mixture`. The result does not depend on the number of threads.
    :func:`scanpy_cnnimpute.get.dropout_prob` gives any part of the matrix without the layer.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.pp.dropout_prob(adata, cluster_key="cell_line")
    >>> adata.layers["dropout_prob"].shape == adata.shape
    True
    """
    check_adata(adata, caller="pp.dropout_prob")
    for name, value, allowed in (("model", model, get_args(Model)), ("store", store, get_args(Store))):
        if value not in allowed:
            msg = f"{name}={value!r} is not known. Available: {list(allowed)}."
            raise ValueError(msg)
    check_number("max_layer_bytes", max_layer_bytes, int, 0)
    if cluster_key is None:
        cluster_key = DEFAULT_CLUSTER_KEY
    check_keys(cluster_key, key_added=key_added)
    adata = adata.copy() if copy else adata
    results = Results(
        adata,
        function=FUNCTION,
        key=key_added,
        keys=[("layers", key_added), *stored_keys(key_added)],
    )
    counts = get_counts(adata, layer, caller="pp.dropout_prob")
    if cluster_key == DEFAULT_CLUSTER_KEY and cluster_key not in adata.obs:
        tl.cluster(adata, layer=layer, key_added=cluster_key)
    clusters, names = cluster_codes(adata, cluster_key, caller="pp.dropout_prob")

    library_size = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if not library_size.any():
        msg = "No cell has any counts: there is nothing to fit."
        raise ValueError(msg)
    # A cell without counts has no library to scale to, and tells nothing about any gene.
    clusters = np.where(library_size > 0, clusters, -1)
    mixture = fit_mixture(counts, library_size, clusters, len(names))
    store_mixture(results, key_added, mixture, library_size, clusters, names, adata.var_names)

    n_bytes = 4 * adata.n_obs * adata.n_vars
    if store == "layer" or (store == "auto" and n_bytes <= max_layer_bytes):
        probabilities = np.empty(adata.shape, dtype=np.float32)
        for rows, block in probability_blocks(mixture, counts, library_size, clusters):
            probabilities[rows] = block
        results.add("layers", key_added, probabilities)
    elif store == "auto":
        logger.warning(
            "pp.dropout_prob: the layer would take %.1f GB, more than max_layer_bytes (%.1f GB); only the parameters "
            "are stored. get.dropout_prob gives any part of it, pp.cnn_impute works with the parameters.",
            n_bytes / 1e9,
            max_layer_bytes / 1e9,
        )
    summary = mixture.summary(counts, clusters)
    summary.insert(0, "cluster", names)
    results.write(
        {"clusters": np.array(names, dtype=str), "summary": summary.set_index("cluster")},
        {
            "layer": layer,
            "cluster_key": cluster_key,
            "model": model,
            "store": store,
            "max_layer_bytes": max_layer_bytes,
            "n_vars": adata.n_vars,
            "units": "probability",
        },
    )
    logger.info(
        "pp.dropout_prob: in the clusters, %s of the zeros have a probability above 0.5",
        ", ".join(f"{share:.0%}" for share in summary["zeros_called"]),
    )
    return adata if copy else None
