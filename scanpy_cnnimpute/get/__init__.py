"""Parts of stored results."""

from __future__ import annotations

from ._cnn_imputed import cnn_imputed
from ._dropout_prob import dropout_prob

__all__ = ["cnn_imputed", "dropout_prob"]
