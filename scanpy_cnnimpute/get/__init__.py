"""Parts of stored results."""

from __future__ import annotations

from ._dropout_prob import dropout_prob

__all__ = ["dropout_prob"]
