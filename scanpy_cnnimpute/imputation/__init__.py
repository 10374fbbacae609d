"""Convolutional networks that predict dropouts from correlated genes: arrays in, arrays out. Keras loads late."""

from __future__ import annotations

from .default.features import ALL
from .default.molecules import ExpectedCounts, RateNetworks
from .default.nonzero import ConditionalNetworks
from .paper.plan import STATUSES

__all__ = ["ALL", "STATUSES", "ConditionalNetworks", "ExpectedCounts", "RateNetworks"]
