"""Differential expression on arrays: decoys of genes, tests of two groups of cells, and the null that decoys give."""

from __future__ import annotations

from .decoys import decoys_of, mixing, permute_counts
from .imputed import ImputedDecoys
from .null import DecoyNull
from .scores import TESTS, Contrast, log2_fold_changes

__all__ = [
    "TESTS",
    "Contrast",
    "DecoyNull",
    "ImputedDecoys",
    "decoys_of",
    "log2_fold_changes",
    "mixing",
    "permute_counts",
]
