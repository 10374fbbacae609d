"""Tools: clusters and their evaluation."""

from __future__ import annotations

from ._cluster import cluster
from ._eval_clusters import eval_clusters

__all__ = ["cluster", "eval_clusters"]
