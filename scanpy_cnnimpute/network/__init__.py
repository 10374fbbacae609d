"""Convolutional networks that predict dropouts from correlated genes: arrays in, arrays out. Keras loads late."""

from __future__ import annotations

from ._imputer import CNNImputer
from ._tasks import STATUSES

__all__ = ["STATUSES", "CNNImputer"]
