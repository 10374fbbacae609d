"""What every imputer can do, and the registry that finds imputers by preset and estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from .._checks import check_choice
from .._counts import Counts
from .._matrix import evenly_spaced
from .._progress import progress_bar
from .._records import ArrayRecord
from ..dropout import Clusters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp

    from .._finished import FinishedParts
    from ..dropout import Dropout, DropoutModel
    from ..presets import Settings

Entries = Literal["zeros", "all"]

IMPUTERS: list[type[Imputer]] = []
"""The imputers. One registers itself when its class is defined."""

STATUSES = (
    "imputed",
    "nothing missing",
    "not modelled",
    "too few cells",
    "no input genes",
    "training failed",
    "no gain",
    "not selected",
)
"""What happened to a gene; codes are positions. Only ``"imputed"`` changes values."""

IMPUTED, NOTHING_MISSING, NOT_MODELLED, TOO_FEW_CELLS, NO_INPUTS, TRAINING_FAILED, NO_GAIN, NOT_SELECTED = range(
    len(STATUSES)
)

GATE = 5.0
"""Standard errors by which a gene has to be predicted worse than by its mean and by zeros to be left as it is."""

# Nine cells to learn from and one to validate on.
MIN_CELLS = 10

SAMPLE_CELLS = 500
"""Cells that stand for all where no layer is written: the share of imputed zeros is known to a few per cent."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Genes that may be imputed.

    Attributes
    ----------
    selected
        ``(n_genes,)`` bool: genes that the user wants imputed.
    no_gain
        ``(n_genes,)`` bool: genes predicted worse than the baselines on held-out molecules.
    modelled
        ``(n_genes, n_clusters or 1)`` bool: genes whose dropout probabilities mean something.
    """

    selected: np.ndarray
    no_gain: np.ndarray
    modelled: np.ndarray

    @classmethod
    def of(cls, model: DropoutModel | None, selected: np.ndarray, *, gate: bool) -> Targets:
        """The selected genes that the dropout model has, gated by its gains if it knows them.

        Parameters
        ----------
        model
            The dropout model; None for probabilities that no model stands behind.
        selected
            ``(n_genes,)`` bool.
        gate
            Leave genes as they are that are predicted worse than the baselines on held-out molecules.
        """
        no_gain = np.zeros(selected.size, dtype=bool)
        if gate and model is not None and model.gain is not None:
            no_gain = model.gain < -GATE
        modelled = np.ones((selected.size, 1), dtype=bool) if model is None else model.modelled
        return cls(selected=selected, no_gain=no_gain, modelled=modelled)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How an imputer is to be fitted.

    Attributes
    ----------
    settings
        Of the imputer's kind.
    estimate
        One of the imputer's.
    random_state
        Seed.
    targets
        Genes that may be imputed.
    clusters
        Clusters of the cells, for imputers that train a network in each.
    checkpoint
        Where finished networks are kept, for imputers that train many.
    """

    settings: Settings
    estimate: str
    random_state: int
    targets: Targets
    clusters: Clusters
    checkpoint: FinishedParts | None = None


@dataclass(frozen=True, kw_only=True)
class Imputed:
    """Predicted counts of some cells.

    Attributes
    ----------
    cells
        Positions of the cells.
    counts
        ``(cells.size, n_genes)`` their counts.
    values
        ``(cells.size, n_genes)`` float32 CSR array of the predictions. An entry of the counts that has none stays.
    deviation
        The standard deviations of the same entries, if asked for.
    """

    cells: np.ndarray
    counts: sp.csr_array
    values: sp.csr_array
    deviation: sp.csr_array | None = None


class Imputer(ArrayRecord, ABC):
    """A fitted imputer: arrays that predict any cells and genes from counts and dropout probabilities.

    A subclass is a dataclass of arrays in a file of this package, with a ``status``, ``(n_genes, n_columns)`` int8
    positions in :data:`STATUSES`, and a ``history``, one dict per network.
    """

    preset: ClassVar[str]
    entries: ClassVar[Entries] = "zeros"
    """``"zeros"`` or ``"all"``: the entries that are predicted."""
    estimates: ClassVar[tuple[str, ...]]
    settings_type: ClassVar[type[Settings]]
    std_units: ClassVar[str | None] = None
    """Units of the standard deviations; None if there are none."""
    needs_calibrated: ClassVar[bool] = False
    """Whether the dropout model has to be the calibrated one."""
    dropout_model: ClassVar[str]
    """Name of the dropout model that is fitted if none is stored."""
    is_stored: ClassVar[bool] = True
    """Whether the arrays are small enough to be stored with the data."""
    trains_in_clusters: ClassVar[bool] = False
    """Whether there are networks, and a status of each gene, in each cluster."""
    can_gate: ClassVar[bool] = True
    """Whether genes can be left as they are that the dropout model predicts badly."""

    status: np.ndarray
    history: list[dict[str, Any]]
    settings: Any
    estimate: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        IMPUTERS.append(cls)

    @classmethod
    @abstractmethod
    def fit(cls, counts: Counts, dropout: Dropout, options: FitOptions) -> Imputer:
        """Learn from the counts, or a bounded draw of their cells."""

    @abstractmethod
    def predict(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        *,
        clusters: Clusters | None = None,
        genes: np.ndarray | None = None,
        return_std: bool = False,
    ) -> Iterator[Imputed]:
        """Predict probable dropouts of any cells that are in memory, block by block.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)`` counts of the cells.
        dropout
            Dropout probabilities of the same cells.
        clusters
            Clusters of the cells, for imputers that have a network in each; default: those of the nearest profiles.
        genes
            Positions of the genes to predict, rising; all serve as inputs. Default: all.
        return_std
            Also give standard deviations.
        """

    def predict_all(
        self, counts: Counts, dropout: Dropout, *, clusters: Clusters | None = None, return_std: bool = False
    ) -> Iterator[Imputed]:
        """Predict all cells, of which some are read at a time; see :meth:`predict`."""
        with progress_bar("Imputing", counts.shape[0], unit="cells") as bar:
            for rows, block in counts.blocks():
                own = dropout.of_block(counts, rows, block)
                named = None if clusters is None else Clusters(codes=clusters.codes[rows], names=clusters.names)
                for part in self.predict(block, own, clusters=named, return_std=return_std):
                    yield replace(part, cells=rows[part.cells])
                    bar.update(part.cells.size)

    def imputable(self, genes: np.ndarray | None) -> np.ndarray:
        """Those of the given genes, or of all, that may be imputed by their status."""
        usable = ~np.isin(self.status[:, 0], (NOT_MODELLED, TOO_FEW_CELLS, NO_GAIN, NOT_SELECTED))
        return np.flatnonzero(usable) if genes is None else genes[usable[genes]]

    def note_imputed(self, predictions: Iterator[Imputed]) -> Iterator[Imputed]:
        """Pass predictions for the cells of the fit on, and note in `status` which genes are imputed."""
        for part in predictions:
            self.status[part.values.indices, 0] = IMPUTED
            yield part

    def sample(self, counts: Counts, dropout: Dropout) -> tuple[np.ndarray, list[Imputed]]:
        """Evenly spaced cells, and what is predicted for them: where not all cells are to be predicted."""
        rows = evenly_spaced(counts.shape[0], SAMPLE_CELLS)
        own = counts.rows(rows)
        return rows, list(self.note_imputed(self.predict(own, dropout.take(rows, Counts.of(own)))))

    def kept_scale(self, dropout: Dropout) -> np.ndarray | None:
        """What counts without a prediction are multiplied by, ``(n_cells,)``; None if they stay as they are."""
        return None

    @classmethod
    def check_std(cls, *, return_std: bool) -> None:
        """Refuse standard deviations from an imputer that has none."""
        if return_std and cls.std_units is None:
            msg = f"return_std=True needs preset='default', not {cls.preset!r}."
            raise ValueError(msg)

    def check_consistent(self) -> None:
        """Refuse codes and ids that are not possible; see :meth:`ArrayRecord.check_consistent`."""
        if self.status.min(initial=0) < 0 or self.status.max(initial=0) >= len(STATUSES):
            msg = f"the array 'status' has codes outside 0 to {len(STATUSES) - 1}"
            raise ValueError(msg)
        if self.status.shape[1] != 1 and not self.trains_in_clusters:
            msg = f"the array 'status' has {self.status.shape[1]} columns, expected 1"
            raise ValueError(msg)
        neighbours, gene_ids = getattr(self, "neighbours", None), getattr(self, "gene_ids", None)
        if neighbours is not None and ((neighbours < -1).any() or ((neighbours < 0) != (neighbours[:, :1] < 0)).any()):
            msg = "the array 'neighbours' has ids that no gene has"
            raise ValueError(msg)
        if gene_ids is not None and gene_ids.min(initial=0) < 0:
            msg = "the array 'gene_ids' has ids below 0"
            raise ValueError(msg)
        if gene_ids is not None and np.unique(gene_ids).size < gene_ids.size:
            msg = "genes occur more than once: keep each of them once"
            raise ValueError(msg)

    @classmethod
    def fit_predict(
        cls, counts: Counts, dropout: Dropout, options: FitOptions, *, return_std: bool = False
    ) -> tuple[Imputer, Iterator[Imputed]]:
        """Fit and predict the same cells; what is learnt may not be kept beyond that."""
        imputer = cls.fit(counts, dropout, options)
        return imputer, imputer.predict_all(counts, dropout, clusters=options.clusters, return_std=return_std)


def presets() -> list[str]:
    """Names of the presets."""
    return list(dict.fromkeys(imputer.preset for imputer in IMPUTERS))


def find_imputer(preset: str, estimate: str | None = None, entries: str = "zeros") -> type[Imputer]:
    """The imputer of a preset for some entries and an estimate; default: the first estimate, the recommended one."""
    check_choice("preset", preset, presets())
    check_choice("entries", entries, get_args(Entries))
    if estimate is not None:
        check_choice("estimate", estimate, dict.fromkeys(name for kind in IMPUTERS for name in kind.estimates))
    of_preset = [imputer for imputer in IMPUTERS if imputer.preset == preset]
    able = [imputer for imputer in of_preset if imputer.entries == entries]
    found = [imputer for imputer in able if estimate is None or estimate in imputer.estimates]
    if not found:
        has = "; ".join(f"entries={kind.entries!r}, estimate in {list(kind.estimates)}" for kind in of_preset)
        what = f"entries={entries!r}" if not able else f"estimate={estimate!r}"
        msg = f"{what} is not one of preset={preset!r}, which has {has}."
        raise ValueError(msg)
    return found[0]


def resolve_settings(imputer: type[Imputer], estimate: str, overrides: dict[str, Any]) -> Settings:
    """The imputer's settings with the overrides that are not None; errors say where a setting belongs."""
    names = imputer.settings_type.names()
    for name, value in overrides.items():
        if value is None or name in names:
            continue
        owners = [
            f"preset={other.preset!r}, entries={other.entries!r}, estimate in {list(other.estimates)}"
            for other in IMPUTERS
            if name in other.settings_type.names()
        ]
        msg = (
            f"{name}={value!r} is not a setting of preset={imputer.preset!r}, entries={imputer.entries!r}, "
            f"estimate={estimate!r}, which has "
            f"{sorted(names)}; it is one of {owners or 'none'}."
        )
        raise ValueError(msg)
    return imputer.settings_type.from_overrides(overrides)


def gene_status(options: FitOptions, n_cells: int) -> np.ndarray:
    """Status of each gene before anything is predicted, ``(n_genes, 1)`` int8, of an imputer for all clusters."""
    modelled = options.targets.modelled.any(axis=1)
    status = np.full((modelled.size, 1), NOTHING_MISSING, dtype=np.int8)
    if n_cells < MIN_CELLS:
        status[:] = TOO_FEW_CELLS
    status[options.targets.no_gain] = NO_GAIN
    status[~modelled] = NOT_MODELLED
    status[~options.targets.selected] = NOT_SELECTED
    return status
