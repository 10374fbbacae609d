"""Clusters of cells: arrays in, labels out."""

from __future__ import annotations

from .methods import Clusterer, Clustering, Method

__all__ = ["Clusterer", "Clustering", "Method"]
