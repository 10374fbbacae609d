"""Agreement of fold changes with those of a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_number, check_vector
from ._accuracy import _pair, mse, pcc

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def normalized_euclidean_distance(truth: ArrayLike, estimate: ArrayLike) -> float:
    """Normalised Euclidean distance: half the variance of the differences over the sum of the variances; 0 is best.

    Parameters
    ----------
    truth, estimate
        Values of the same shape.

    Returns
    -------
    A float in [0, 1]: 0 if the two differ by a constant, 0.5 if they are uncorrelated, 1 if one is the negative of the
    other; NaN if both are constant.

    Raises
    ------
    ValueError
        If the shapes differ or are empty.

    Notes
    -----
    ``0.5 var(X - Y) / (var X + var Y)`` (the paper, "Differential expression analysis").

    Examples
    --------
    >>> normalized_euclidean_distance([0.0, 1.0, 2.0], [2.0, 1.0, 0.0])
    1.0
    """
    x, y = _pair(truth, estimate)
    spread = x.var() + y.var()
    return float(0.5 * (x - y).var() / spread) if spread > 0 else float("nan")


def de_overlap(
    reference_lfc: ArrayLike, lfc: ArrayLike, *, n_reference: int = 300, n: int = 900
) -> dict[str, float | int]:
    """Number of genes with the largest fold changes in two analyses, and the agreement of their fold changes.

    Parameters
    ----------
    reference_lfc, lfc
        Log fold change of each gene in the reference and in the analysis to judge; NaN where it is not significant.
    n_reference, n
        Number of genes of each that are compared, those with the largest absolute log fold change; all significant
        genes if there are fewer. Defaults: those of the paper.

    Returns
    -------
    Dict with ``n_common``, the number of genes in both selections; ``up`` and ``down``, the numbers of those with
    positive and with negative log fold change in both; and of the log fold changes of the common genes ``pcc`` (1 is
    best), ``mse`` and ``ned`` (normalised Euclidean distance; 0 is best), NaN if there are too few genes.

    Raises
    ------
    ValueError
        If the two are not vectors of the same length, a value is infinite, or `n_reference` or `n` is below 1.

    Notes
    -----
    The paper, figure 5C. Genes with opposite signs count in ``n_common`` and in the scores. Ties are broken by the
    order of the genes.

    Examples
    --------
    >>> found = de_overlap([3.0, -2.0, 0.1], [2.0, -1.0, float("nan")], n_reference=2, n=2)
    >>> found["up"], found["down"], found["n_common"], found["mse"]
    (1, 1, 2, 1.0)
    """
    reference, own = check_vector("reference_lfc", reference_lfc), check_vector("lfc", lfc)
    if reference.ndim != 1 or reference.shape != own.shape:
        msg = f"reference_lfc and lfc must be two vectors of one length, got shapes {reference.shape} and {own.shape}."
        raise ValueError(msg)
    if np.isinf(reference).any() or np.isinf(own).any():
        msg = "A log fold change is infinite: add a pseudocount to the means, or set it to NaN to leave the gene out."
        raise ValueError(msg)
    n_reference, n = check_number("n_reference", n_reference, int, 1), check_number("n", n, int, 1)
    common = np.intersect1d(_largest(reference, n_reference), _largest(own, n))
    x, y = reference[common], own[common]
    scores = {"pcc": pcc, "mse": mse, "ned": normalized_euclidean_distance}
    return {
        "up": int(((x > 0) & (y > 0)).sum()),
        "down": int(((x < 0) & (y < 0)).sum()),
        "n_common": common.size,
        **{name: score(x, y) if common.size else float("nan") for name, score in scores.items()},
    }


def _largest(lfc: np.ndarray, n: int) -> np.ndarray:
    order = np.argsort(-np.abs(lfc), kind="stable")  # NaN last
    return order[: min(n, int(np.isfinite(lfc).sum()))]
