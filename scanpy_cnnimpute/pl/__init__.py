"""Plots of stored results, with the conventions of Scanpy's plots."""

from __future__ import annotations

from ._clusters import clusters
from ._dropout_prob import dropout_prob
from ._false_signals import false_signals
from ._held_out import held_out
from ._history import history
from ._imputation import imputation
from ._mixture import mixture
from ._reliability import reliability

__all__ = ["clusters", "dropout_prob", "false_signals", "held_out", "history", "imputation", "mixture", "reliability"]
