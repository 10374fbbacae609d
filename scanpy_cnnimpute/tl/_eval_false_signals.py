"""``tl.eval_false_signals``: how many genes that do not differ do tests call, and which correlations are invented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from .._anndata.counts import check_adata, raw_matrix
from .._anndata.results import Results, check_keys
from .._checks import check_choice, check_names, check_seed
from .._matrix import evenly_spaced
from ..differential import TESTS
from ._contrasts import REST, LayerValues, compared_cells, read_contrasts, test_layer
from ._inputs import layer_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ..differential import Contrast
    from ._contrasts import Tested

CALLER = "tl.eval_false_signals"
CALLED = 0.05  # p-value
FALSE_DISCOVERY_RATE = 0.1
MAX_PAIRED_GENES = 300  # whose correlations are computed
MIN_DETECTION = 0.1  # share of the cells that have them


def eval_false_signals(
    adata: AnnData,
    groupby: str,
    *,
    groups: Literal["all"] | Sequence[str] = "all",
    reference: str = REST,
    layers: Sequence[str | None] | str | None = ("X", "cnn_imputed"),
    methods: Sequence[str] = ("wilcoxon", "t-test"),
    random_state: int = 0,
    key_added: str = "eval_false_signals",
) -> pd.DataFrame:
    """Measure with decoys how often tests call genes that do not differ, for each layer and test.

    Parameters
    ----------
    adata
        Annotated data with counts, raw or imputed.
    groupby
        Column of `.obs` with the groups.
    groups, reference
        Groups to compare, as in :func:`~scanpy_cnnimpute.tl.rank_genes_groups`.
    layers
        Layers with counts, raw or imputed. ``"X"`` or ``None`` in the sequence stands for `X`.
    methods
        ``"wilcoxon"``, ``"t-test"`` or both, as Scanpy has them.
    random_state
        Seed of the permutations.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per layer and test, and the columns ``layer``, ``method``; ``called``: share of the decoys
    with a p-value up to 0.05, which is 0.05 for a test that is right; ``false_discoveries``: decoys over genes, of
    which there are as many, among what is found at a false discovery rate of 10 %; ``correlation``: mean squared
    correlation of decoys with other genes over that of independent genes, 1 if none is invented. Means over the
    groups. ``.uns[key_added]`` holds ``table`` and ``params``.

    Raises
    ------
    KeyError
        If a column or layer is not there.
    TypeError, ValueError
        As :func:`~scanpy_cnnimpute.tl.rank_genes_groups`.

    Notes
    -----
    A decoy is a gene whose counts are permuted among the compared cells of similar library size; decoys of imputed
    layers are imputed. See :func:`~scanpy_cnnimpute.tl.rank_genes_groups`, whose p-values they calibrate.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> groups = {"groups": ["A549"], "reference": "H838"}
    >>> table = scnn.tl.eval_false_signals(adata, "cell_line", layers="X", **groups)
    >>> list(table["method"])
    ['wilcoxon', 't-test']
    """
    check_adata(adata, caller=CALLER)
    asked = check_names("methods", methods, (str,), "the name of a test")
    if not asked:
        msg = f"methods={methods!r} is empty. Available: {list(TESTS)}."
        raise ValueError(msg)
    for method in asked:
        check_choice("methods", method, TESTS)
    random_state = check_seed(random_state)
    check_keys(key_added=key_added)
    results = Results(adata, function=CALLER, key=key_added, keys=[])
    contrasts = read_contrasts(adata, groupby, groups, reference)
    asked_layers = layer_list(layers) or [None]
    names = [None if layer == "X" and "X" not in adata.layers else layer for layer in asked_layers]
    for name in names:
        raw_matrix(adata, name)  # before the work, if one is not there
    rows = []
    for name in names:
        values = LayerValues(adata, name, caller=CALLER, n_decoys=1, random_state=random_state)
        # Groups against the rest all compare the same cells.
        distinct = list(contrasts.values())[: 1 if reference == REST else None]
        correlation = pd.Series([_correlation(values, contrast) for contrast in distinct]).mean()
        for method, tested in test_layer(values, contrasts, asked, shared=reference == REST).items():
            row = pd.DataFrame([_false_signals(each) for each in tested.values()]).mean().to_dict()
            rows.append({"layer": "X" if name is None else name, "method": method, **row, "correlation": correlation})
    table = pd.DataFrame(rows)
    table.index = table.index.astype(str)
    params = {"groupby": groupby, "groups": list(contrasts), "reference": reference, "random_state": random_state}
    results.write({"table": table}, params)
    return table.copy()


def _false_signals(tested: Tested) -> dict[str, float]:
    genes, decoys = (
        2 * norm.sf(np.abs(scores[seen]))
        for scores, seen in ((tested.scores, tested.seen), (tested.decoy_scores, tested.decoy_seen))
    )
    found = false_discovery_control(np.concatenate([genes, decoys])) <= FALSE_DISCOVERY_RATE
    n_genes, n_decoys = found[: genes.size].sum(), found[genes.size :].sum()
    return {
        "called": float(np.mean(decoys <= CALLED)) if decoys.size else np.nan,
        "false_discoveries": float(min(n_decoys / max(n_genes, 1), 1.0)),
    }


def _correlation(values: LayerValues, contrast: Contrast) -> float:
    """Mean squared correlation of decoys with other genes, times the degrees of freedom."""
    compared = compared_cells(contrast)
    read = values.reader(compared)
    genes, decoys = read(evenly_spaced(values.n_genes, 4 * MAX_PAIRED_GENES))
    detected = np.flatnonzero(np.minimum((genes > 0).mean(axis=0), (decoys > 0).mean(axis=0)) >= MIN_DETECTION)
    detected = detected[evenly_spaced(detected.size, MAX_PAIRED_GENES)]
    pair = [part[:, detected] - part[:, detected].mean(axis=0) for part in (genes, decoys)]
    varies = np.logical_and(*(part.any(axis=0) for part in pair))
    if varies.sum() < 2:  # noqa: PLR2004 - a pair
        return float("nan")
    first, second = (part[:, varies] / np.linalg.norm(part[:, varies], axis=0) for part in pair)
    squares = (first.T @ second) ** 2
    others = ~np.eye(len(squares), dtype=bool)
    return float(squares[others].mean() * (compared.size - 1))
