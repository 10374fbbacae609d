"""``tl.eval_de``: differential expression against that of a reference, such as bulk RNA-seq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import rankdata

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys
from .._checks import check_choice, check_key, check_names, check_number
from .._matrix import log_normalised
from ._inputs import common_genes, layer_list, obs_column

if TYPE_CHECKING:
    from collections.abc import Sequence

Test = Literal["wilcoxon", "t-test", "t-test_overestim_var"]  # of Scanpy, those that give p-values and fold changes

MIN_CELLS = 2  # in a group: a variance needs two
REFERENCE_COLUMNS = ["log2_fold_change", "p_value"]


def eval_de(
    adata: AnnData,
    *,
    groupby: str,
    group: str | Sequence[str],
    reference_group: str,
    reference: pd.DataFrame,
    layers: Sequence[str | None] | str | None = None,
    tested: Sequence[str] | str | None = None,
    method: Test = "wilcoxon",
    p_value: float = 0.05,
    reference_p_value: float = 0.09,
    n_reference: int = 300,
    n: int = 900,
    key_added: str = "eval_de",
) -> pd.DataFrame:
    """Compare differential expression between two groups of cells with that of a reference, such as bulk RNA-seq.

    Parameters
    ----------
    adata
        Annotated data with counts, raw or imputed.
    groupby
        Column of `.obs` with the groups.
    group, reference_group
        Groups to compare; genes with a positive log fold change are higher in `group`. A list of one group is allowed,
        as in :func:`scanpy.tl.rank_genes_groups`.
    reference
        Table indexed by gene with the columns ``log2_fold_change`` (of `group` over `reference_group`) and
        ``p_value``. Genes that the table or `adata` lacks are left out.
    layers
        Layers with counts, raw or imputed, to judge, each in a row. ``"X"`` or ``None`` in the sequence stands for `X`.
        Default: `X`.
    tested
        Keys in `.uns` of results of :func:`~scanpy_cnnimpute.tl.rank_genes_groups`, or of Scanpy's function of that
        name, for `group` and all genes, to judge beside the layers, each in a row.
    method
        Test of :func:`scanpy.tl.rank_genes_groups`; ``"wilcoxon"`` with correction for ties.
    p_value, reference_p_value
        Largest p-value, not adjusted, of significant genes in the cells and in the reference.
    n_reference, n
        How many of the significant genes of the reference and of the cells are compared, by falling absolute log fold
        change. The defaults are those of figure 5C of the paper.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per layer, ``X`` and ``layer:<key>``, and result, ``uns:<key>``; also in
    ``.uns[key_added]["table"]``. Columns:

    ``auc``
        Probability that a gene which is significant in the reference has a larger absolute log fold change than one
        which is not; 1 is best. Genes that are not significant in the cells count as 0.
    ``up``, ``down``, ``n_common``, ``pcc``, ``mse``, ``ned``
        See :func:`~scanpy_cnnimpute.metrics.de_overlap`.
    ``n_significant``
        Number of significant genes in the cells.
    ``n_genes``
        Number of genes compared.

    Raises
    ------
    KeyError
        If a column or layer is not there.
    TypeError, ValueError
        For groups with fewer than two cells, layers that are no counts, and references that cannot be used.

    Notes
    -----
    The paper, "Differential expression analysis". Each layer is tested as log1p(counts per 10,000), with its own
    library sizes over all genes. The log2 fold change is that of Scanpy: the ratio of the exponentiated mean
    logarithms. A gene without counts in one group gets about 30, which dominates ``mse``.

    Imputed values are not independent observations: cells borrow from each other. Variances within groups, and so
    p-values, are too small in imputed layers. ``n_significant`` is therefore no measure of quality.

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
    settings = {
        "groupby": groupby,
        "group": _one_group("group", group),
        "reference_group": _one_group("reference_group", reference_group),
        "method": check_choice("method", method, get_args(Test)),
        "p_value": check_number("p_value", p_value, float, 0),
        "reference_p_value": check_number("reference_p_value", reference_p_value, float, 0),
        "n_reference": check_number("n_reference", n_reference, int, 1),
        "n": check_number("n", n, int, 1),
    }
    stored = check_names("tested", tested, (str,), "a key of adata.uns")
    names = layer_list(layers) or [None]
    cells = _cells(adata, groupby, settings["group"], settings["reference_group"])
    _check_reference(reference)
    columns = common_genes(adata, reference.index, caller="tl.eval_de")
    genes = adata.var_names[columns]
    expected = reference.loc[genes, REFERENCE_COLUMNS].astype("float64")
    expected_lfc = _significant(expected["log2_fold_change"], expected["p_value"], reference_p_value)

    results_by_row = {f"uns:{key}": _stored(adata, key, settings, genes) for key in stored}
    for name, matrix in layer_matrices(adata, names, caller="tl.eval_de").items():
        results_by_row[name] = _test(log_normalised(matrix.astype(np.float64))[:, columns], genes, cells, method)
    rows = {}
    for name, found in results_by_row.items():
        lfc = _significant(found["logfoldchanges"], found["pvals"], p_value)
        score = np.nan_to_num(np.abs(lfc))
        rows[name] = {
            # auroc takes values in [0, 1]: ranks keep the order.
            "auc": metrics.auroc(~np.isnan(expected_lfc), rankdata(score) / score.size),
            **metrics.de_overlap(expected_lfc, lfc, n_reference=n_reference, n=n),
            "n_significant": int((~np.isnan(lfc)).sum()),
            "n_genes": genes.size,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    results.write({"table": table}, settings)
    return table.copy()


def _one_group(name: str, value: Any) -> Any:
    """The group, out of a list of one if need be."""
    if not pd.api.types.is_list_like(value):
        return value
    if len(value) != 1:
        msg = f"{name}={list(value)!r} names {len(value)} groups, expected one. Call tl.eval_de once for each."
        raise ValueError(msg)
    return next(iter(value))


def _cells(adata: AnnData, groupby: str, group: Any, reference_group: Any) -> dict[str, np.ndarray]:
    """Rows of the cells of both groups."""
    labels = obs_column(adata, "groupby", groupby)
    if group == reference_group:
        msg = f"group and reference_group are both {group!r}; two different groups are needed."
        raise ValueError(msg)
    cells = {}
    for name, label in (("group", group), ("reference_group", reference_group)):
        cells[name] = np.flatnonzero((labels == label).fillna(False).to_numpy(dtype=bool))
        if cells[name].size < MIN_CELLS:
            available = labels.value_counts().loc[lambda n: n >= MIN_CELLS].index
            msg = (
                f"{name}={label!r} has {cells[name].size} cells in adata.obs[{groupby!r}], at least {MIN_CELLS} are "
                f"needed. Available: {list(available)}."
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
    """The result of Scanpy for ``group`` against ``reference_group``, in the order of the genes."""
    import scanpy as sc

    part = AnnData(
        sp.csr_matrix(matrix[np.concatenate(list(cells.values()))]),
        var=pd.DataFrame(index=genes),
    )
    part.obs["cells"] = pd.Categorical(np.repeat(list(cells), [rows.size for rows in cells.values()]))
    # The correction for ties of a gene with one value is 0 / 0; Scanpy sets its score to 0.
    with np.errstate(invalid="ignore"):
        sc.tl.rank_genes_groups(
            part, "cells", groups=["group"], reference="reference_group", method=method, tie_correct=True
        )
    return sc.get.rank_genes_groups_df(part, group="group").set_index("names").loc[genes]


def _stored(adata: AnnData, key: str, settings: dict[str, Any], genes: pd.Index) -> pd.DataFrame:
    """A result for the groups that is stored under a key, in the order of the genes."""
    import scanpy as sc

    group = settings["group"]
    check_key("tested", key)
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "names" not in record or "logfoldchanges" not in record:
        msg = f"tested={key!r} is no result of tl.rank_genes_groups with fold changes in adata.uns."
        raise KeyError(msg)
    for name, asked in (("groupby", settings["groupby"]), ("reference", settings["reference_group"])):
        if str(record["params"].get(name)) != str(asked):
            msg = f"adata.uns[{key!r}] has {name}={record['params'].get(name)!r}, not {asked!r}."
            raise ValueError(msg)
    if str(group) not in record["names"].dtype.names:
        msg = f"adata.uns[{key!r}] has no group {group!r}. Available: {list(record['names'].dtype.names)}."
        raise KeyError(msg)
    table = sc.get.rank_genes_groups_df(adata, group=str(group), key=key).set_index("names")
    missing = genes.difference(table.index)
    if missing.size:
        msg = f"adata.uns[{key!r}] lacks {missing.size} of the genes, such as {missing[0]!r}: rank all genes."
        raise ValueError(msg)
    return table.loc[genes]


def _significant(lfc: pd.Series, p_value: pd.Series, threshold: float) -> np.ndarray:
    """The log fold changes, NaN where they are not significant."""
    return lfc.where(p_value <= threshold).to_numpy(dtype=np.float64)
