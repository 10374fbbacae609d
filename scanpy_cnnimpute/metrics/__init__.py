"""Metrics of arrays, tests that hold counts out, and simple methods to compare with."""

from __future__ import annotations

from ._accuracy import gene_pcc, mse, pcc, poisson_deviance
from ._baselines import BASELINES, baseline_estimates
from ._calibration import auroc, brier_score, expected_calibration_error, reliability_curve
from ._clusters import adjusted_rand_index, entropy, normalized_mutual_information, purity
from ._differential import de_overlap, normalized_euclidean_distance
from ._gini import gini, housekeeping_normalize
from ._holdout import MaskedCounts, mask_nonzeros, split_molecules, thin_counts

__all__ = [
    "BASELINES",
    "MaskedCounts",
    "adjusted_rand_index",
    "auroc",
    "baseline_estimates",
    "brier_score",
    "de_overlap",
    "entropy",
    "expected_calibration_error",
    "gene_pcc",
    "gini",
    "housekeeping_normalize",
    "mask_nonzeros",
    "mse",
    "normalized_euclidean_distance",
    "normalized_mutual_information",
    "pcc",
    "poisson_deviance",
    "purity",
    "reliability_curve",
    "split_molecules",
    "thin_counts",
]
