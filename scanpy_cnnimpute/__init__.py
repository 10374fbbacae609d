"""Missing value recovery for single-cell RNA-seq with convolutional networks, in Scanpy's manners."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("scanpy-cnnimpute")

from . import datasets, get, metrics, pl, pp, tl
from ._estimate import estimate
from .estimator import CNNImputer

__all__ = ["CNNImputer", "datasets", "estimate", "get", "metrics", "pl", "pp", "tl"]
