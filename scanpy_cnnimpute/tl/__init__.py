"""Tools: clusters, and the evaluation of clusters and of imputation."""

from __future__ import annotations

from ._cluster import cluster
from ._eval_clusters import eval_clusters
from ._eval_de import eval_de
from ._eval_false_signals import eval_false_signals
from ._eval_gini import eval_gini
from ._eval_imputation import eval_imputation
from ._rank_genes_groups import rank_genes_groups

__all__ = [
    "cluster",
    "eval_clusters",
    "eval_de",
    "eval_false_signals",
    "eval_gini",
    "eval_imputation",
    "rank_genes_groups",
]
