"""The paper's preset: one network per cluster and subset of target genes."""

from __future__ import annotations

from .imputer import PaperImputer

__all__ = ["PaperImputer"]
