"""Impute blocks of cells apart from one another: lazily in a Dask array, or from file to file."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._counts import CountsInMemory, empty_matrix
from .._matrix import check_probabilities
from ..dropout import AllMissing, Dropout, GivenProbabilities, ModelledDropout
from .assemble import put_in, result_container, result_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._counts import DaskCounts
    from .._records import ArrayRecord
    from ..dropout import DropoutModel
    from .base import Imputer


@dataclass(frozen=True, kw_only=True)
class BlockImputer:
    """A fitted imputer and its dropout model: arrays, which travel to any process.

    Attributes
    ----------
    imputer, model
        The imputer; the dropout model, None if probabilities are given.
    layer_genes
        Genes that a layer of probabilities was written for; None for all.
    return_std
        Also give the standard deviations.
    """

    label: ClassVar[str] = "cnn-imputed"

    imputer: Imputer
    model: DropoutModel | None
    layer_genes: np.ndarray | None = None
    return_std: bool = False

    @classmethod
    def of(cls, imputer: Imputer, dropout: Dropout, *, return_std: bool = False) -> BlockImputer:
        """What imputes blocks as the imputer does with these dropout probabilities."""
        if isinstance(dropout, ModelledDropout):
            return cls(imputer=imputer, model=dropout.model, layer_genes=dropout.layer_genes, return_std=return_std)
        return cls(imputer=imputer, model=None, return_std=return_std)

    def __call__(self, matrix: Any, cells: ArrayRecord | None, layer: Any = None) -> Any:
        """Counts with predictions in them, or a pair of these and their standard deviations.

        Parameters
        ----------
        matrix
            ``(n_cells, n_genes)`` counts in memory, as the user has them.
        cells
            The model's description of the cells.
        layer
            Dropout probabilities, which take precedence over the model's.
        """
        counts = CountsInMemory(matrix)
        given = None if layer is None else GivenProbabilities(check_probabilities(layer, where="The dropout layer"))
        dropout: Dropout = AllMissing(counts.shape[1]) if given is None else given
        if self.model is not None:
            dropout = ModelledDropout(counts, self.model, cells, given, self.layer_genes)
        predictions = self.imputer.predict(counts.csr, dropout, return_std=self.return_std)
        both = put_in(counts, self.imputer, dropout, predictions, return_std=self.return_std)
        return both if self.return_std else both[0]


def impute_lazily(counts: DaskCounts, imputer: Imputer, dropout: Dropout, *, return_std: bool) -> tuple[Any, Any]:
    """Dask arrays of the imputed counts and of the standard deviations, or None."""
    impute = BlockImputer.of(imputer, dropout, return_std=return_std)
    layer = None if dropout.layer is None else dropout.layer.matrix
    return lazy_layers(counts, impute, imputer, by_cell=dropout.description, layer=layer, return_std=return_std)


def lazy_layers(
    counts: DaskCounts,
    impute: Callable[..., Any],
    imputer: Imputer,
    *,
    by_cell: Callable[[np.ndarray], Any],
    layer: Any = None,
    return_std: bool,
) -> tuple[Any, Any]:
    """Dask arrays of what a function gives that imputes blocks: one matrix and None, or a pair."""
    container, dtype = result_container(counts, imputer), result_dtype(counts.dtype)
    if not return_std:
        return counts.lazily(impute, by_cell=by_cell, layer=layer, container=container, dtype=dtype), None
    kind = np.dtype(object)
    pairs = counts.lazily(impute, by_cell=by_cell, layer=layer, container=np.ndarray, dtype=kind)
    values, deviation = (
        pairs.map_blocks(itemgetter(number), dtype=kind, meta=empty_matrix(container, kind), chunks=pairs.chunks)
        for number, kind in enumerate((dtype, np.dtype(np.float32)))
    )
    return values, deviation
