"""Tools: clusters, and the evaluation of clusters and of imputation."""

from __future__ import annotations

from ._cluster import cluster
from ._eval_clusters import eval_clusters
from ._eval_imputation import eval_imputation

__all__ = ["cluster", "eval_clusters", "eval_imputation"]
