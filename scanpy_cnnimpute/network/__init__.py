"""Convolutional networks that predict dropouts from correlated genes: arrays in, arrays out. Keras loads late."""

from __future__ import annotations

from ._blocks import ALL
from ._conditional import ConditionalNetworks
from ._imputer import CNNImputer
from ._rate import ExpectedCounts, RateNetworks
from ._tasks import STATUSES

__all__ = ["ALL", "STATUSES", "CNNImputer", "ConditionalNetworks", "ExpectedCounts", "RateNetworks"]
