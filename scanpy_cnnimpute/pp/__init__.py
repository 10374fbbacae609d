"""Preprocessing: dropout probabilities and imputation."""

from __future__ import annotations

from ._cnn_impute import cnn_impute
from ._dropout_prob import dropout_prob

__all__ = ["cnn_impute", "dropout_prob"]
