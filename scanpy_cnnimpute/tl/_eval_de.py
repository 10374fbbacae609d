"""``tl.eval_de``: compare differential expression with that of a reference, such as bulk RNA-seq."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import rankdata

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys
from .._checks import check_number
from .._matrix import log_normalised
from ._eval_gini import common_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

Test = Literal["wilcoxon", "t-test", "t-test_overestim_var"]

REFERENCE_COLUMNS = ["log2_fold_change", "p_value"]


def eval_de(
    adata: AnnData,
    *,
    groupby: str,
    group: str,
    reference_group: str,
    reference: pd.DataFrame,
    layers: Sequence[str | None] | str | None = None,
    method: Test = "wilcoxon",
    p_value: float = 0.05,
    reference_p_value: float = 0.09,
    n_reference: int = 300,
    n: int = 900,
    key_added: str = "eval_de",
) -> pd.DataFrame:
    """Compare the genes that differ between two groups of cells with those of a reference, such as bulk RNA-seq.

    Parameters
    ----------
    adata
        Annotated data with counts, raw or imputed.
    groupby
        Column of `.obs` with the groups.
    group, reference_group
        Groups to compare; a fold change above 1 means more in `group`.
    reference
        Table indexed by gene with ``log2_fold_change`` (of `group` over `reference_group`) and ``p_value``. Genes that
        only one of the table and `adata` has are left out.
    layers
        Layers to judge, each in a row; ``"X"`` or ``None`` in the sequence stands for `X`. Default: `X`.
    method
        Test of :func:`scanpy.tl.rank_genes_groups`; ``"wilcoxon"`` with correction for ties.
    p_value, reference_p_value
        Genes with a p-value (not adjusted) up to this are significant, in the cells and in the reference.
    n_reference, n
        Significant genes with the largest absolute log fold changes that are compared, of the reference and the cells.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per layer, ``X`` and ``layer:<key>``, also in ``.uns[key_added]["table"]``: ``auc`` (how
    often a gene that is significant in the reference has the larger absolute log fold change than one that is not, a
    gene that is not significant in the cells counting as 0; 1 is best), ``up``, ``down``, ``n_common``, ``pcc``,
    ``mse``, ``ned`` (see :func:`~scanpy_cnnimpute.metrics.de_overlap`), ``n_significant`` (in the cells) and
    ``n_genes`` (compared).

    Raises
    ------
    KeyError, TypeError, ValueError
        For keys and groups that are not there, layers that are no counts, and references that cannot be used.

    Notes
    -----
    The paper, "Differential expression analysis". Each layer is tested as log1p(counts per 10,000), with its own
    library sizes over all genes. The log2 fold change is Scanpy's, of the mean logarithms turned back into counts per
    10,000; a gene that one group lacks entirely gets about 30 by it, which weighs heavily in ``mse``.

    Imputed values are no independent observations: cells borrow from each other, which makes the variance within a
    group too small and p-values of imputed layers too low. ``n_significant`` is therefore no measure of quality.

    Examples
    --------
    >>> import pandas as pd
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> bulk = pd.DataFrame({"log2_fold_change": 1.0, "p_value": [0.01, 0.5]}, index=["KRT8", "ACTB"])
    >>> groups = {"groupby": "cell_line", "group": "A549", "reference_group": "H838"}
    >>> scnn.tl.eval_de(adata, reference=bulk, **groups).loc["X", "n_genes"].item()
    2
    """
    check_adata(adata, caller="tl.eval_de")
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_de", key=key_added, keys=[])
    if method not in get_args(Test):
        msg = f"method={method!r} is not known. Available: {list(get_args(Test))}."
        raise ValueError(msg)
    settings = {
        "method": method,
        "p_value": check_number("p_value", p_value, float, 0),
        "reference_p_value": check_number("reference_p_value", reference_p_value, float, 0),
        "n_reference": check_number("n_reference", n_reference, int, 1),
        "n": check_number("n", n, int, 1),
    }
    cells = _cells(adata, groupby, group, reference_group)
    _check_reference(reference)
    columns = common_genes(adata, reference.index, caller="tl.eval_de")
    genes = adata.var_names[columns]
    expected = reference.loc[genes, REFERENCE_COLUMNS].astype("float64")
    expected_lfc = _significant(expected["log2_fold_change"], expected["p_value"], reference_p_value)

    rows = {}
    for name, matrix in layer_matrices(adata, layers or [None], caller="tl.eval_de").items():
        found = _test(log_normalised(matrix.astype(np.float64))[:, columns], genes, cells, method)
        lfc = _significant(found["logfoldchanges"], found["pvals"], p_value)
        score = np.nan_to_num(np.abs(lfc))
        rows[name] = {
            # Ranks order the genes as the scores do, and are probabilities in form.
            "auc": metrics.auroc(~np.isnan(expected_lfc), rankdata(score) / score.size),
            **metrics.de_overlap(expected_lfc, lfc, n_reference=n_reference, n=n),
            "n_significant": int((~np.isnan(lfc)).sum()),
            "n_genes": genes.size,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    results.write(
        {"table": table},
        {"groupby": groupby, "group": group, "reference_group": reference_group, **settings},
    )
    return table.copy()


def _cells(adata: AnnData, groupby: str, group: str, reference_group: str) -> dict[str, np.ndarray]:
    """Rows of the cells of both groups."""
    if groupby not in adata.obs:
        msg = f"groupby={groupby!r} is not in adata.obs. Available: {list(adata.obs.columns)}."
        raise KeyError(msg)
    if group == reference_group:
        msg = f"group and reference_group are both {group!r}; two different groups are needed."
        raise ValueError(msg)
    labels = adata.obs[groupby]
    cells = {}
    for name, label in (("group", group), ("reference_group", reference_group)):
        cells[name] = np.flatnonzero((labels == label).fillna(False).to_numpy(dtype=bool))
        if cells[name].size < 2:  # noqa: PLR2004
            available = labels.value_counts().loc[lambda n: n > 1].index
            msg = (
                f"{name}={label!r} has {cells[name].size} cells in adata.obs[{groupby!r}], at least 2 are needed. "
                f"Available: {list(available)}."
            )
            raise ValueError(msg)
    return cells


def _check_reference(reference: pd.DataFrame) -> None:
    if not isinstance(reference, pd.DataFrame):
        msg = f"reference is a {type(reference).__name__}, expected a DataFrame with columns {REFERENCE_COLUMNS}."
        raise TypeError(msg)
    missing = [column for column in REFERENCE_COLUMNS if column not in reference]
    if missing:
        msg = f"reference has no column {' and '.join(map(repr, missing))}. Available: {list(reference.columns)}."
        raise KeyError(msg)


def _test(matrix: sp.csr_array, genes: pd.Index, cells: dict[str, np.ndarray], method: Test) -> pd.DataFrame:
    """Scanpy's result for the first group against the second, in the order of the genes."""
    import scanpy as sc

    part = AnnData(
        sp.csr_matrix(matrix[np.concatenate(list(cells.values()))]),
        var=pd.DataFrame(index=genes),
    )
    part.obs["cells"] = pd.Categorical(np.repeat(list(cells), [rows.size for rows in cells.values()]))
    # A gene without any difference is 0 / 0 to the correction for ties; Scanpy makes its score 0.
    with np.errstate(invalid="ignore"):
        sc.tl.rank_genes_groups(
            part, "cells", groups=["group"], reference="reference_group", method=method, tie_correct=True
        )
    return sc.get.rank_genes_groups_df(part, group="group").set_index("names").loc[genes]


def _significant(lfc: pd.Series, p_value: pd.Series, threshold: float) -> np.ndarray:
    """The log fold changes, NaN where they are not significant."""
    return lfc.where(p_value <= threshold).to_numpy(dtype=np.float64)
