"""Convolutional networks that predict dropouts from correlated genes: arrays in, arrays out. Keras loads late."""

from __future__ import annotations

from ._imputer import STATUSES, CNNImputer

__all__ = ["STATUSES", "CNNImputer"]
