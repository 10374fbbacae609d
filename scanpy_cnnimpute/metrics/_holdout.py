"""Hold out part of a count matrix: mask entries, thin or split molecules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._checks import check_number, check_seed, check_share
from .._matrix import is_integer, to_csr, values_problem


@dataclass(frozen=True, kw_only=True)
class MaskedCounts:
    """Counts with some non-zeros set to zero.

    Attributes
    ----------
    counts
        ``(n_cells, n_kept_genes)`` CSR array without the masked entries.
    genes
        Positions of the kept genes in the data.
    rows
        Rows of the masked entries in `counts`, in their order.
    columns
        Columns of the masked entries in `counts`.
    truth
        Counts of the masked entries before masking.
    """

    counts: sp.csr_array
    genes: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    truth: np.ndarray


def mask_nonzeros(
    counts: Any, *, fraction: float = 0.1, min_detection: float = 0.5, random_state: int = 0
) -> MaskedCounts:
    """Set a random share of the non-zeros of well detected genes to zero: the accuracy test of the paper.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts, dense or sparse.
    fraction
        Share of the non-zeros to mask. Default: that of the paper.
    min_detection
        Genes detected in a smaller share of the cells are left out. Default: that of the paper.
    random_state
        Seed.

    Returns
    -------
    Masked counts of the kept genes, and the masked entries.

    Raises
    ------
    ValueError
        If a share is out of range or there is no entry to mask.

    Notes
    -----
    The paper, "cnnImpute accurately recovers missing value".

    Examples
    --------
    >>> import numpy as np
    >>> masked = mask_nonzeros(np.ones((10, 4), dtype=int), fraction=0.25)
    >>> masked.truth.size, int(masked.counts.sum())
    (10, 30)
    """
    check_share("fraction", fraction)
    check_number("min_detection", min_detection, float, 0, 1)
    random_state = check_seed(random_state)
    matrix = to_csr(counts, where="counts")
    seen = np.bincount(matrix.indices, minlength=matrix.shape[1])
    genes = np.flatnonzero(seen >= min_detection * matrix.shape[0])
    kept = sp.csr_array(matrix[:, genes])
    n_masked = round(fraction * kept.nnz)
    if n_masked == 0:
        msg = f"Nothing to mask: {genes.size} genes are detected in at least {min_detection:.0%} of the cells."
        raise ValueError(msg)
    chosen = np.sort(np.random.default_rng(random_state).choice(kept.nnz, size=n_masked, replace=False))
    rows = np.searchsorted(kept.indptr, chosen, side="right") - 1
    columns, truth = kept.indices[chosen].copy(), kept.data[chosen].copy()
    data = kept.data.copy()
    data[chosen] = 0
    left = sp.csr_array((data, kept.indices.copy(), kept.indptr.copy()), shape=kept.shape)
    left.eliminate_zeros()
    return MaskedCounts(counts=left, genes=genes, rows=rows, columns=columns, truth=truth)


def thin_counts(counts: Any, *, capture_efficiency: float, random_state: int = 0) -> sp.csr_array:
    """Keep each molecule with a given probability, as a shallower sequencing run would.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` whole counts, dense or sparse.
    capture_efficiency
        Probability that a molecule is kept.
    random_state
        Seed.

    Returns
    -------
    CSR array of the same shape and dtype.

    Raises
    ------
    ValueError
        If the probability is not in (0, 1], or the counts are not whole numbers.

    Examples
    --------
    >>> import numpy as np
    >>> int(thin_counts(np.full((100, 100), 10), capture_efficiency=0.5).sum()) // 1000
    49
    """
    random_state = check_seed(random_state)
    if not 0 < check_number("capture_efficiency", capture_efficiency, float) <= 1:
        msg = f"capture_efficiency={capture_efficiency!r} is not allowed: above 0, at most 1."
        raise ValueError(msg)
    matrix = _whole_counts(counts)
    rng = np.random.default_rng(random_state)
    return _with_data(matrix, rng.binomial(matrix.data.astype(np.int64), capture_efficiency))


def split_molecules(
    counts: Any, *, share: float = 0.5, capture_efficiency: float | None = None, random_state: int = 0
) -> tuple[sp.csr_array, sp.csr_array]:
    """Split the molecules of every entry into two sets, as if each cell had been captured twice.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` whole counts, dense or sparse.
    share
        Share of the molecules in the first set.
    capture_efficiency
        Share of the molecules of a cell that the counts hold. Two independent captures of the cell would share
        molecules, and with this argument the two sets do. Default: they share none, the limit of a small share.
    random_state
        Seed.

    Returns
    -------
    Two CSR arrays of the same shape and dtype. Each molecule is in at least one of them; shared molecules are in both.

    Raises
    ------
    ValueError
        If a share is not in (0, 1), or the counts are not whole numbers.

    Notes
    -----
    Molecular cross-validation with its overlap correction (Batson, Royer and Webber, bioRxiv 786269). With captures
    of efficiency ``s c`` and ``q`` whose union has efficiency ``c``, ``q = c (1 - s) / (1 - s c)``. This is also the
    probability that a molecule of the first set is in the second.

    Examples
    --------
    >>> import numpy as np
    >>> train, test = split_molecules(np.full((5, 5), 8))
    >>> bool(((train + test).toarray() == 8).all())
    True
    """
    check_share("share", share)
    if capture_efficiency is not None:
        check_share("capture_efficiency", capture_efficiency)
    random_state = check_seed(random_state)
    matrix = _whole_counts(counts)
    rng = np.random.default_rng(random_state)
    total = matrix.data.astype(np.int64)
    first = rng.binomial(total, share)
    second = total - first
    if capture_efficiency is not None:
        second += rng.binomial(first, capture_efficiency * (1 - share) / (1 - share * capture_efficiency))
    return _with_data(matrix, first), _with_data(matrix, second)


def _whole_counts(counts: Any) -> sp.csr_array:
    matrix = to_csr(counts, where="counts")
    problem = values_problem(matrix)
    if problem is None and not is_integer(matrix.data):
        problem = "values that are not whole numbers"
    if problem is not None:
        msg = f"The counts have {problem}; molecules can only be drawn from raw counts."
        raise ValueError(msg)
    return matrix


def _with_data(matrix: sp.csr_array, data: np.ndarray) -> sp.csr_array:
    """A copy of the matrix with other values at its non-zeros; new zeros are removed."""
    new = sp.csr_array((data.astype(matrix.dtype), matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
    new.eliminate_zeros()
    return new
