"""What every dropout model can do, and the registry that finds models by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from .._counts import Counts, CountsInMemory, is_dask, is_stored
from .._matrix import check_probabilities, to_csr
from .._records import ArrayRecord

if TYPE_CHECKING:
    import pandas as pd

MODELS: dict[str, type[DropoutModel]] = {}
"""The dropout models by name. A model registers itself when its class is defined."""

CALLED = 0.5
"""Probability above which reports call a zero a dropout (the paper's threshold)."""


BLOCK_BYTES = 2**23  # of probabilities computed at a time

MIN_EFFICIENCY = 1e-6
"""Smallest capture efficiency: one molecule of a million, below which single precision overflows."""


def check_efficiency(efficiency: np.ndarray, counted: np.ndarray, *, where: str) -> np.ndarray:
    """Capture efficiencies, 1 for cells without counts, whose values do not matter.

    Parameters
    ----------
    efficiency
        ``(n_cells,)`` values.
    counted
        ``(n_cells,)`` bool: cells with counts.
    where
        Name of the values in the error.

    Raises
    ------
    ValueError
        If a value is no share of the molecules.
    """
    checked = np.where(counted, efficiency, 1.0)
    wrong = checked[~((checked >= MIN_EFFICIENCY) & (checked <= 1))]
    if wrong.size:
        msg = (
            f"{where} is not allowed ({wrong.size} cells, the first {wrong[0]}): a share of the molecules, above 0 and "
            f"at most 1, and not below {MIN_EFFICIENCY:g}."
        )
        raise ValueError(msg)
    return checked


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Clusters of some cells.

    Attributes
    ----------
    codes
        ``(n_cells,)`` int64, position in `names`; -1 for cells without a cluster.
    names
        Names of the clusters.
    """

    codes: np.ndarray
    names: list[str]

    @classmethod
    def single(cls, n_cells: int) -> Clusters:
        """All cells in one cluster."""
        return cls(codes=np.zeros(n_cells, dtype=np.int64), names=["all"])


@dataclass(frozen=True, kw_only=True)
class DropoutFit:
    """What fitting a dropout model gives: the model, its description of the cells, and tables for the user."""

    model: DropoutModel
    cells: ArrayRecord
    tables: dict[str, pd.DataFrame]


class DropoutModel(ArrayRecord, ABC):
    """A fitted dropout model: arrays per gene, which describe any cell from its own counts.

    A subclass is a frozen dataclass of arrays in a file of this package; its `name` registers it.
    """

    name: ClassVar[str]
    cells_type: ClassVar[type[ArrayRecord]]
    """What a description of cells is made of; it has ``library_size``, ``(n_cells,)`` total counts."""
    needs_clusters: ClassVar[bool]
    """Whether the model is fitted in clusters. Otherwise they serve reports alone."""
    counts_molecules: ClassVar[bool]
    """Whether molecules are modelled, so that the share that was counted and the type of the counts are parameters."""
    gain: np.ndarray | None = None
    """``(n_genes,)`` gain on held-out molecules in standard errors; None for models that do not know it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        MODELS[cls.name] = cls

    @classmethod
    @abstractmethod
    def fit(
        cls,
        counts: Counts,
        *,
        clusters: Clusters | None,
        capture_efficiency: np.ndarray | None,
        count_type: str,
        random_state: int,
    ) -> DropoutFit:
        """Fit the model to all cells or a bounded draw of them, and describe all cells.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)``.
        clusters
            Clusters of the cells, if the model needs them.
        capture_efficiency
            ``(n_cells,)`` share of the molecules that was counted, if the model counts molecules.
        count_type
            ``"umi"`` for molecules or ``"reads"``; the same to models that do not count molecules.
        random_state
            Seed.
        """

    @abstractmethod
    def describe(
        self, counts: sp.csr_array, *, clusters: Clusters | None = None, capture_efficiency: np.ndarray | None = None
    ) -> ArrayRecord:
        """Describe cells, also those the model was not fitted to, by their own counts."""

    @abstractmethod
    def probability(self, counts: sp.csr_array, cells: Any) -> np.ndarray:
        """Dropout probabilities ``(n_cells, n_genes)`` float32 of cells with these counts and this description."""

    def probabilities(self, counts: sp.csr_array, cells: Any, out: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`probability`, of any number of cells, some at a time: intermediate results are small."""
        out = np.empty(counts.shape, dtype=np.float32) if out is None else out
        height = max(1, BLOCK_BYTES // (4 * max(counts.shape[1], 1)))
        for start in range(0, counts.shape[0], height):
            rows = np.arange(start, min(start + height, counts.shape[0]))
            out[rows] = self.probability(counts[rows], cells.take(cells=rows))
        return out

    @property
    @abstractmethod
    def modelled(self) -> np.ndarray:
        """``(n_genes, n_clusters)`` bool: genes whose probabilities are defined; one column without clusters."""

    def clusters(self, cells: Any) -> Clusters:
        """The clusters that the model puts the cells into: one, unless it is fitted in clusters."""
        return Clusters.single(cells.library_size.size)

    @abstractmethod
    def summary(self, counts: Counts, cells: Any, clusters: Clusters) -> pd.DataFrame:
        """One row per cluster: ``n_cells``, ``n_modelled`` genes, ``zeros_called`` above 0.5, and more by model."""


@dataclass(frozen=True, kw_only=True)
class BlockProbabilities:
    """Dropout probabilities of some genes for blocks of cells; made of arrays, which travel to any process.

    Attributes
    ----------
    model
        The model of these genes.
    genes
        Their positions; None for all. Other genes get 0.
    """

    label: ClassVar[str] = "dropout-prob"

    model: DropoutModel
    genes: np.ndarray | None

    @classmethod
    def of(cls, model: DropoutModel, selected: np.ndarray) -> BlockProbabilities:
        """Of the selected genes, ``(n_genes,)`` bool."""
        genes = None if selected.all() else np.flatnonzero(selected)
        return cls(model=model if genes is None else model.take(genes=genes), genes=genes)

    def __call__(self, matrix: Any, cells: Any) -> np.ndarray:
        """Probabilities ``(n_cells, n_genes)`` float32 of cells with these counts and this description."""
        counts = to_csr(matrix)
        out = np.zeros(counts.shape, dtype=np.float32)
        self.put_in(out, counts, cells)
        return out

    def put_in(self, out: np.ndarray, counts: sp.csr_array, cells: Any) -> None:
        """Write the probabilities into an array of zeros."""
        if self.genes is None:
            self.model.probabilities(counts, cells, out)
        else:
            out[:, self.genes] = self.model.probabilities(counts[:, self.genes], cells)


class Dropout(ABC):
    """Dropout probabilities of the entries of one count matrix, in any blocks."""

    @property
    def layer(self) -> GivenProbabilities | None:
        """Probabilities from a matrix that was given, if some are."""
        return None

    @property
    def has_layer(self) -> bool:
        """Whether they come, at least in part, from a matrix that was given."""
        return self.layer is not None

    def description(self, cells: np.ndarray) -> ArrayRecord | None:
        """The model's description of some cells; None if no model stands behind the probabilities."""
        return None

    @abstractmethod
    def block(self, cells: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        """Probabilities ``(cells.size, genes.size)`` of cells and genes given by position; default: all genes."""

    def of_block(self, counts: Counts, rows: np.ndarray, block: sp.csr_array) -> Dropout:
        """The probabilities of a block of :meth:`Counts.blocks`."""
        return self if isinstance(counts, CountsInMemory) else self.take(rows, Counts.of(block))

    @abstractmethod
    def take(self, cells: np.ndarray, counts: Counts) -> Dropout:
        """The probabilities of some cells, whose counts are these."""


class AllMissing(Dropout):
    """Every zero is a dropout: used if no probabilities are given."""

    def __init__(self, n_genes: int) -> None:
        self._n_genes = n_genes

    def block(self, cells: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        """All ones."""
        return np.ones((cells.size, self._n_genes if genes is None else genes.size), dtype=np.float32)

    def take(self, cells: np.ndarray, counts: Counts) -> AllMissing:
        """The same."""
        return self


class GivenProbabilities(Dropout):
    """Probabilities from a matrix of any kind, such as a layer of the user's own."""

    def __init__(self, matrix: Any) -> None:
        if is_dask(matrix):
            matrix = matrix.rechunk({1: -1})
        as_it_is = sp.issparse(matrix) or is_dask(matrix) or is_stored(matrix)
        self.matrix = matrix if as_it_is else np.asarray(matrix)

    @property
    def layer(self) -> GivenProbabilities:
        """These."""
        return self

    @cached_property
    def _by_cell(self) -> sp.csr_array:
        return sp.csr_array(self.matrix)

    @cached_property
    def _by_gene(self) -> sp.csc_array:
        return sp.csc_array(self.matrix)

    def block(self, cells: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        """The matrix' values."""
        if not sp.issparse(self.matrix):
            return self.matrix[cells] if genes is None else self.matrix[np.ix_(cells, genes)]
        return self._by_cell[cells].toarray() if genes is None else self._by_gene[:, genes].toarray()[cells]

    def take(self, cells: np.ndarray, counts: Counts) -> GivenProbabilities:
        """Some rows of the matrix."""
        return self.rows(cells)

    def rows(self, cells: np.ndarray) -> GivenProbabilities:
        """The probabilities of some cells, in memory."""
        if is_dask(self.matrix) or is_stored(self.matrix):
            where = "The dropout layer"
            return GivenProbabilities(check_probabilities(Counts.of(self.matrix, where=where).rows(cells), where=where))
        return GivenProbabilities(self._by_cell[cells] if sp.issparse(self.matrix) else self.matrix[cells])


class ModelledDropout(Dropout):
    """Probabilities of a fitted model for cells that it describes.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts of the cells.
    model, cells
        The model and its description of the cells.
    layer
        Probabilities that the user may have changed; they take precedence over the model's.
    layer_genes
        Genes that the layer was written for; the model speaks for the others. Default: all.
    """

    # Probabilities of a layer closer than this to the model's are the model's own, up to rounding.
    TOLERANCE = 1e-6

    def __init__(
        self,
        counts: Counts,
        model: DropoutModel,
        cells: Any,
        layer: GivenProbabilities | Any = None,
        layer_genes: np.ndarray | None = None,
    ) -> None:
        self.counts, self.model, self.cells = counts, model, cells
        self._layer = layer if layer is None or isinstance(layer, GivenProbabilities) else GivenProbabilities(layer)
        self.layer_genes = layer_genes

    @property
    def layer(self) -> GivenProbabilities | None:
        """The layer, if there is one."""
        return self._layer

    def description(self, cells: np.ndarray) -> ArrayRecord:
        """The model's description of some cells."""
        return self.cells.take(cells=cells)

    @cached_property
    def _by_gene(self) -> sp.csc_array:
        return self.counts.load().tocsc()

    def block(self, cells: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        """The layer's values where there is one, otherwise the model's."""
        if genes is None:
            changed = self.changed(cells)
            return self._modelled(cells) if changed is None else changed
        modelled = None
        if self.layer is not None:
            found = self.layer.block(cells, genes)
            if self.layer_genes is None or self.layer_genes[genes].all():
                return found
            modelled = np.where(self.layer_genes[genes], found, self._modelled(cells, genes))
        return self._modelled(cells, genes) if modelled is None else modelled

    def take(self, cells: np.ndarray, counts: Counts) -> ModelledDropout:
        """The model and the layer of some cells."""
        layer = None if self.layer is None else self.layer.rows(cells)
        return ModelledDropout(counts, self.model, self.description(cells), layer, self.layer_genes)

    def changed(self, cells: np.ndarray) -> np.ndarray | None:
        """Probabilities of all genes if the user changed any of these cells' values, else None."""
        if self.layer is None:
            return None
        found, expected = self.layer.block(cells), self._modelled(cells)
        if self.layer_genes is not None:
            found = np.where(self.layer_genes, found, expected)
        return None if np.abs(found - expected).max(initial=0.0) <= self.TOLERANCE else found

    def _modelled(self, cells: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        described = self.description(cells)
        if genes is None:
            return self.model.probability(self.counts.rows(cells), described)
        counts = sp.csr_array(self._by_gene[:, genes].tocsr()[cells])
        return self.model.take(genes=genes).probability(counts, described)
