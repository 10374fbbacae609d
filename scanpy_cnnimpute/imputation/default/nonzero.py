"""The conditional estimate: what a count is, given that it is not zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from ..._logging import logger
from ..._matrix import positions_of
from ..._progress import progress_bar
from ..._records import array, array_list
from ..._threads import single_threaded_blas
from ...presets import ConditionalSettings
from ..base import MIN_CELLS, Imputed, Imputer, gene_status
from .architecture import hidden_mse, shared_network
from .features import GeneLayout, batches, check_network, correlated_genes, layout_of, network_genes, network_inputs
from .low_rank import GeneLines, LowRank, fit_lines, fit_low_rank
from .selection import above_threshold
from .training import train_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..._counts import Counts
    from ...dropout import Clusters, Dropout
    from ...presets import Settings
    from ..base import FitOptions

MIN_VALUE = np.float32(np.log(2.0))  # log1p of one count: a non-zero is not less
MAX_CELLS = 5_000  # cells to learn from, drawn at random
DESCRIBED_CELLS = 5_000  # cells described at a time
CELLS_PER_COMPONENT = 10
MIN_COMPONENTS = 5
N_CHANNELS = 4  # of each correlated gene: residual, residual of the low rank, whether seen, level where not seen
N_OWN_FEATURES = 3  # of a target in a cell: low rank, level, uncertainty
N_GENE_FEATURES = 4
NOISE_BINS = 40
NOISE_PRIOR = 20.0  # weight of the common variance in that of a gene, in entries
# Batch sizes; tuned on masked counts.
BATCH_ENTRIES = 60_000
MIN_BATCH, MAX_BATCH = 2, 64
VALIDATION_ENTRIES = 300_000  # of cells x genes at most
CALL_ENTRIES = 240_000  # predicted in one call of the network
MIN_CALL, MAX_CALL = 8, 256  # cells in it
MAX_LOG = 50.0  # far more than the logarithm of any count, 2**53
TINY = float(np.finfo(np.float32).tiny)  # what is divided by is larger


@dataclass(frozen=True, kw_only=True)
class _Visible:
    """What a network may know of some cells: everything but the entries that are hidden.

    `residuals` are of all genes, standardised, at the visible non-zeros; `correlated` are the neighbours and
    correlations among the network's genes.
    """

    residuals: sp.csr_array
    depth: np.ndarray
    lines: GeneLines
    low_rank: LowRank
    scores: np.ndarray
    moments: np.ndarray
    layout: GeneLayout

    @classmethod
    def of(
        cls, residuals: sp.csr_array, depth: np.ndarray, lines: GeneLines, low_rank: LowRank, layout: GeneLayout
    ) -> _Visible:
        """Cells by their residuals, with their scores in the low rank."""
        scores, moments = low_rank.scores(residuals)
        return cls(
            residuals=residuals,
            depth=depth,
            lines=lines,
            low_rank=low_rank,
            scores=scores,
            moments=moments,
            layout=layout,
        )


@dataclass(kw_only=True)
class NonzeroImputer(Imputer):
    """Predicts log1p(count), given that it is not zero, for every cell and gene.

    A line per gene in log library size, a low rank of the residuals and, added to them, a convolutional network that
    reads the residuals of the genes most correlated with each target, and the low rank. The network learns from entries
    that were hidden from everything it reads: lines, low rank and choice of correlated genes have not seen them.

    Attributes
    ----------
    gene_ids
        ``(n_genes,)`` ids that `neighbours` refers to.
    neighbours, correlations
        ``(n_genes, n_top)`` ids of the most correlated genes, -1 for genes without a network; and correlations.
    features
        ``(n_genes, 4)`` features of the genes.
    intercept, slope, sd
        ``(n_genes,)`` the lines, and the standard deviation around them.
    loadings, loading_moments, precision
        ``(n_genes, k)``, ``(n_genes, k (k + 1) / 2)`` and ``(n_genes,)``: the low rank.
    noise_factor
        ``(n_genes,)`` what the variance of a prediction is multiplied by.
    status
        ``(n_genes, 1)`` positions in :data:`STATUSES`.
    noise_level, noise_variance
        Predicted values, rising, and the variance there.
    depth_mean
        Mean log library size, where the depth of a cell is 0.
    weights
        Of the network; none if it was not trained.
    """

    preset: ClassVar[str] = "default"
    estimates: ClassVar[tuple[str, ...]] = ("conditional",)
    settings_type: ClassVar[type[Settings]] = ConditionalSettings
    std_units: ClassVar[str | None] = "log1p(counts)"
    dropout_model: ClassVar[str] = "calibrated"

    gene_ids: np.ndarray = array("i4", "genes")
    neighbours: np.ndarray = array("i4", "genes", "top")
    correlations: np.ndarray = array("f4", "genes", "top")
    features: np.ndarray = array("f4", "genes", "features")
    intercept: np.ndarray = array("f4", "genes")
    slope: np.ndarray = array("f4", "genes")
    sd: np.ndarray = array("f4", "genes")
    loadings: np.ndarray = array("f4", "genes", "components")
    loading_moments: np.ndarray = array("f4", "genes", "pairs")
    precision: np.ndarray = array("f4", "genes")
    noise_factor: np.ndarray = array("f8", "genes")
    status: np.ndarray = array("i1", "genes", "columns")
    noise_level: np.ndarray = array("f8", "bins")
    noise_variance: np.ndarray = array("f8", "bins")
    depth_mean: float = array("f8")
    weights: list[np.ndarray] = array_list("f4")
    settings: ConditionalSettings = field(default_factory=ConditionalSettings)
    estimate: str = "conditional"
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fit(cls, counts: Counts, dropout: Dropout, options: FitOptions) -> NonzeroImputer:
        """Fit to the non-zeros of the cells that have counts, or of `MAX_CELLS` drawn from them."""
        settings: Any = options.settings
        cells = np.flatnonzero(counts.totals.n_genes)
        status = gene_status(options, cells.size)
        if cells.size < MIN_CELLS:
            logger.info("%d cells have counts, fewer than the %d it takes to train a network", cells.size, MIN_CELLS)
            return cls._empty(counts.shape[1], settings, status)
        fold_seed, network_seed, draw_seed = np.random.SeedSequence(options.random_state).spawn(3)
        if cells.size > MAX_CELLS:
            cells = np.sort(np.random.default_rng(draw_seed).choice(cells, MAX_CELLS, replace=False))
        own = counts.rows(cells)
        with progress_bar("Fitting the imputer", 2 + settings.n_folds, unit="steps") as bar, single_threaded_blas():
            return _Fit(own, settings, fold_seed, network_seed).run(status, bar)

    @classmethod
    def _empty(cls, n_genes: int, settings: ConditionalSettings, status: np.ndarray) -> NonzeroImputer:
        nothing = np.zeros(n_genes, dtype=np.float32)
        return cls(
            gene_ids=np.arange(n_genes, dtype=np.int32),
            neighbours=np.full((n_genes, settings.n_top), -1, dtype=np.int32),
            correlations=np.zeros((n_genes, settings.n_top), dtype=np.float32),
            features=np.zeros((n_genes, N_GENE_FEATURES), dtype=np.float32),
            intercept=nothing,
            slope=nothing,
            sd=np.ones(n_genes, dtype=np.float32),
            loadings=nothing[:, None],
            loading_moments=nothing[:, None],
            precision=nothing,
            noise_factor=nothing,
            status=status,
            noise_level=np.zeros(1),
            noise_variance=np.zeros(1),
            depth_mean=0.0,
            weights=[],
            settings=settings,
        )

    def check_consistent(self) -> None:
        """Refuse arrays that do not go together; see :meth:`Imputer.check_consistent`."""
        super().check_consistent()
        check_network(self.neighbours, self.weights)
        k = self.loadings.shape[1]
        if self.loading_moments.shape[1] != k * (k + 1) // 2:
            msg = f"the array 'loading_moments' has {self.loading_moments.shape[1]} pairs of {k} components"
            raise ValueError(msg)
        for name in ("intercept", "slope"):
            self._check_range(name, -MAX_LOG, MAX_LOG)
        self._check_range("sd", TINY, MAX_LOG)
        if (np.diff(self.noise_level) < 0).any():
            msg = "the array 'noise_level' falls"
            raise ValueError(msg)

    def predict(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        *,
        clusters: Clusters | None = None,
        genes: np.ndarray | None = None,
        return_std: bool = False,
    ) -> Iterator[Imputed]:
        """Counts of the zeros whose dropout probability exceeds the threshold; see :meth:`Imputer.predict`."""
        wanted = self.imputable(genes)
        layout = layout_of(self.gene_ids, self.neighbours, self.correlations, wanted)
        predicted = layout.target_position[layout.genes] >= 0
        size = int(np.clip(CALL_ENTRIES // max(layout.genes.size, 1), MIN_CALL, MAX_CALL))
        network = None
        if self.weights and layout.genes.size:
            network = self._network(layout.genes.size)
        lines = GeneLines(intercept=self.intercept, slope=self.slope, sd=self.sd, depth_mean=self.depth_mean)
        low_rank = LowRank(loadings=self.loadings, loading_moments=self.loading_moments, precision=self.precision)
        cells = np.flatnonzero(np.diff(counts.indptr) > 0) if wanted.size else np.empty(0, dtype=np.int64)
        for first in range(0, cells.size, DESCRIBED_CELLS):
            chunk = cells[first : first + DESCRIBED_CELLS]
            visible = _describe(counts[chunk], lines, low_rank, layout)
            for start in range(0, chunk.size, size):
                rows = np.arange(start, min(start + size, chunk.size))
                part = chunk[rows]
                probability = dropout.block(part)
                own = counts[part]
                indptr, columns, _ = above_threshold(own, probability, wanted, self.settings.threshold)
                values = _predict_rows(visible, rows, network, self.features, layout, predicted, size)
                entries = np.repeat(np.arange(rows.size), np.diff(indptr)), columns
                shape = rows.size, counts.shape[1]
                deviation = None
                if return_std:
                    deviation = sp.csr_array((self._deviation(values[entries], columns), columns, indptr), shape=shape)
                data = np.expm1(values[entries]).astype(np.float32)
                yield Imputed(
                    cells=part,
                    counts=own,
                    values=sp.csr_array((data, columns, indptr), shape=shape),
                    deviation=deviation,
                )

    def _network(self, n_targets: int) -> Callable[[list[np.ndarray]], np.ndarray]:
        """A function of a batch that gives the network's outputs."""
        network = shared_network(self._sizes(n_targets), self.neighbours.shape[1], hidden_mse)
        return lambda inputs: network.predict(self.weights, inputs)

    def _sizes(self, n_targets: int) -> tuple[int, int, int, int]:
        k = self.loadings.shape[1]
        n_features = N_OWN_FEATURES + self.features.shape[1] + self.neighbours.shape[1] + k
        return n_targets, N_CHANNELS + 1, n_features, k + 1

    def _deviation(self, predicted: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Standard deviations of predicted log1p(counts), float32."""
        variance = np.interp(predicted, self.noise_level, self.noise_variance) * self.noise_factor[genes]
        return np.sqrt(variance).astype(np.float32)


class _Fit:
    """One fit to the non-zeros of some cells.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts of the cells.
    settings
        Of the estimate.
    fold_seed, network_seed
        Seeds of the folds, and of the network.
    """

    def __init__(self, counts: sp.csr_array, settings: ConditionalSettings, fold_seed: Any, network_seed: Any) -> None:
        self.counts, self.settings = counts, settings
        self.library_size = counts.sum(axis=1, dtype=np.float64)
        self.detected = np.bincount(counts.indices, minlength=counts.shape[1])
        self.genes = network_genes(self.detected, counts.shape[0])
        self.fold = np.random.default_rng(fold_seed).integers(settings.n_folds, size=counts.nnz)
        self.rng = np.random.default_rng(network_seed)

    def run(self, status: np.ndarray, bar: Any) -> NonzeroImputer:
        """Fit to everything, and without each fold; train; measure the noise on the fold of the validation."""
        n_genes, n_top = self.counts.shape[1], self.settings.n_top
        full = self._visible(self.counts)
        bar.update()
        imputer = NonzeroImputer._empty(n_genes, self.settings, status)
        lines, low_rank = full.lines, full.low_rank
        imputer.intercept, imputer.slope, imputer.sd = lines.intercept, lines.slope, lines.sd
        imputer.depth_mean = lines.depth_mean
        imputer.loadings, imputer.precision = low_rank.loadings, low_rank.precision
        imputer.loading_moments = low_rank.loading_moments
        imputer.features = self._gene_features(lines, low_rank)
        hidden = []
        for number in range(self.settings.n_folds):
            hidden.append(self._hide(self.fold == number, full))
            bar.update()
        network = None
        if self.genes.size > n_top:
            imputer.neighbours[self.genes] = self.genes[full.layout.neighbours]
            imputer.correlations[self.genes] = full.layout.correlations
            imputer.weights, history = self._train(imputer, hidden)
            imputer.history = [history]
            network = imputer._network(self.genes.size)
        bar.update()
        level, variance, factor = self._noise(imputer, network, *hidden[0])
        imputer.noise_level, imputer.noise_variance, imputer.noise_factor = level, variance, factor
        return imputer

    def _visible(self, counts: sp.csr_array, full: _Visible | None = None) -> _Visible:
        """Fit everything to these counts; with `full`, start from it and keep its scale of the residuals."""
        lines = fit_lines(counts, self.library_size)
        if full is not None:
            lines = GeneLines(
                intercept=lines.intercept, slope=lines.slope, sd=full.lines.sd, depth_mean=lines.depth_mean
            )
        depth = lines.depth(self.library_size)
        residuals = lines.standardise(counts, depth)
        n_components = min(self.settings.n_components, max(counts.shape[0] // CELLS_PER_COMPONENT, MIN_COMPONENTS))
        low_rank = fit_low_rank(residuals, n_components, start=None if full is None else full.low_rank)
        neighbours, correlations = correlated_genes(residuals[:, self.genes].toarray(), self.settings.n_top)
        position = positions_of(self.genes, counts.shape[1])
        layout = GeneLayout(
            genes=self.genes,
            neighbours=neighbours,
            correlations=correlations,
            read_position=position,
            target_position=position,
        )
        return _Visible.of(residuals, depth, lines, low_rank, layout)

    def _hide(self, hide: np.ndarray, full: _Visible) -> tuple[_Visible, sp.csr_array]:
        """Fit without some of the entries; also returns those, as log1p(counts)."""
        counts = self.counts

        def part(which: np.ndarray) -> sp.csr_array:
            # Number of kept entries before each place in the data.
            kept = np.concatenate([[0], np.cumsum(which)])
            return sp.csr_array((counts.data[which], counts.indices[which], kept[counts.indptr]), shape=counts.shape)

        # Library sizes stay those of all counts: they are known of any cell.
        return self._visible(part(~hide), full), part(hide).astype(np.float32).log1p()

    def _gene_features(self, lines: GeneLines, low_rank: LowRank) -> np.ndarray:
        counts = self.counts
        total = np.bincount(counts.indices, weights=np.log1p(counts.data), minlength=counts.shape[1])
        mean = total / np.maximum(self.detected, 1)
        sd = lines.sd
        features = np.column_stack(
            [
                mean - mean.mean(),
                (sd - sd.mean()) / (sd.std() + 1e-6),
                2 * self.detected / counts.shape[0] - 1,
                1 / np.sqrt(low_rank.precision) - 1,
            ]
        )
        return features.astype(np.float32)

    def _train(
        self, imputer: NonzeroImputer, hidden: list[tuple[_Visible, sp.csr_array]]
    ) -> tuple[Any, dict[str, Any]]:
        """Train on all folds but the first, which decides when the network is best."""
        genes, n_folds = self.genes, self.settings.n_folds
        seed = int(self.rng.integers(2**30))
        scale = imputer.sd[genes]
        weight = (scale / np.sqrt(np.mean(scale**2))) ** 2
        every = np.arange(self.counts.shape[0])
        answers = [truth[:, genes] for _, truth in hidden]
        order = batches(self.rng, every, int(np.clip(BATCH_ENTRIES // genes.size, MIN_BATCH, MAX_BATCH)))

        def batch(fold: int, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            inputs = _inputs(hidden[fold][0], rows, imputer.features)
            target = answers[fold][rows]
            where = target.nonzero()
            answer = np.zeros((rows.size, genes.size, 2), dtype=np.float32)
            # What the line and the low rank leave, in the gene's standard deviations.
            level = inputs[1][..., 1]
            answer[(*where, 0)] = ((target.toarray() - level) / scale)[where]
            answer[(*where, 1)] = np.broadcast_to(weight, level.shape)[where]
            return inputs, answer

        weights, history = train_network(
            imputer._sizes(genes.size),
            hidden_mse,
            lambda: batch(int(1 + self.rng.integers(n_folds - 1)), next(order)),
            batch(0, self.rng.permutation(every)[: max(1, VALIDATION_ENTRIES // genes.size)]),
            self.settings,
            seed,
        )
        sizes = {"n_targets": int(genes.size), "n_inputs": int(genes.size)}
        return weights, {"cluster": "all", "subset": 0, **sizes, **history}

    def _noise(
        self, imputer: NonzeroImputer, network: Any, visible: _Visible, truth: sp.csr_array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variance of log1p(counts) around predictions that did not see them: by level, and a factor per gene."""
        size = int(np.clip(CALL_ENTRIES // max(self.genes.size, 1), MIN_CALL, MAX_CALL))
        everywhere = np.ones(self.genes.size, dtype=bool)
        parts = [np.empty((3, 0))]
        for start in range(0, truth.shape[0], size):
            rows = np.arange(start, min(start + size, truth.shape[0]))
            hidden = truth[rows].tocoo()
            if hidden.nnz:
                values = _predict_rows(visible, rows, network, imputer.features, visible.layout, everywhere, size)
                predicted = values[hidden.coords]
                parts.append(np.stack([predicted, (hidden.data - predicted) ** 2, hidden.coords[1]]))
        return _noise_curve(np.concatenate(parts, axis=1), truth.shape[1])


def _describe(counts: sp.csr_array, lines: GeneLines, low_rank: LowRank, layout: GeneLayout) -> _Visible:
    """What is known of any cells by what was fitted."""
    depth = lines.depth(counts.sum(axis=1, dtype=np.float64))
    residuals = lines.standardise(counts, depth)
    with single_threaded_blas():
        return _Visible.of(residuals, depth, lines, low_rank, layout)


def _inputs(visible: _Visible, rows: np.ndarray, features: np.ndarray) -> list[np.ndarray]:
    """Blocks of correlated genes, features of the targets and of the cells; reads visible entries only."""
    lines, low_rank, depth, genes = visible.lines, visible.low_rank, visible.depth[rows], visible.layout.genes
    z = visible.residuals[rows][:, genes]
    seen = np.zeros(z.shape, dtype=np.float32)
    seen[z.nonzero()] = 1
    z = z.toarray()
    loadings = np.ascontiguousarray(low_rank.loadings[genes])
    k = loadings.shape[1]
    twice = np.where(np.equal(*np.triu_indices(k)), 1, 2).astype(np.float32)
    base = visible.scores[rows] @ loadings.T
    second = (visible.moments[rows] * twice) @ low_rank.loading_moments[genes].T
    uncertainty = np.sqrt(np.maximum(second - base**2, 0))
    level = lines.intercept[genes] + np.outer(depth, lines.slope[genes]) + lines.sd[genes] * base
    blocks, of_gene = network_inputs(
        visible.layout,
        _stacked(z, (z - base) * seen, seen, (1 - seen) * (level - 1)),
        1,
        _stacked(base, level, uncertainty),
        np.column_stack([features[genes], visible.layout.correlations]),
        visible.scores[rows],
        loadings,
    )
    of_cell = np.column_stack([visible.scores[rows], depth])
    return [blocks, of_gene, of_cell.astype(np.float32)]


def _predict_rows(
    visible: _Visible,
    rows: np.ndarray,
    network: Any,
    features: np.ndarray,
    layout: GeneLayout,
    predicted: np.ndarray,
    size: int,
) -> np.ndarray:
    """Predicted log1p(counts) of all genes in some rows, ``(rows.size, n_genes)``."""
    with single_threaded_blas():
        base = visible.scores[rows] @ visible.low_rank.loadings.T
    if network is not None:
        # One shape for all batches: a new one would be compiled anew.
        with single_threaded_blas():
            inputs = _inputs(visible, np.resize(rows, size), features)
        found = network(inputs)[: rows.size]
        base[:, layout.genes[predicted]] += found[:, predicted]
    return np.maximum(visible.lines.at(visible.depth[rows]) + visible.lines.sd * base, MIN_VALUE)


def _stacked(*parts: np.ndarray) -> np.ndarray:
    """Channels or features side by side in the last dimension, float32."""
    return np.stack(parts, axis=-1, dtype=np.float32, casting="same_kind")


def _noise_curve(residuals: np.ndarray, n_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels, the variance there, and a factor for each gene, shrunk to 1."""
    predicted, squares, genes = residuals[0], residuals[1], residuals[2].astype(np.int64)
    if predicted.size == 0:
        return np.zeros(1), np.zeros(1), np.ones(n_genes)
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, NOISE_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, max(edges.size - 2, 0))
    n = np.bincount(bins)
    level, variance = np.bincount(bins, predicted) / np.maximum(n, 1), np.bincount(bins, squares) / np.maximum(n, 1)
    level, variance = level[n > 0], variance[n > 0]
    share = squares / np.maximum(np.interp(predicted, level, variance), 1e-12)
    factor = (np.bincount(genes, share, minlength=n_genes) + NOISE_PRIOR) / (
        np.bincount(genes, minlength=n_genes) + NOISE_PRIOR
    )
    return level, variance, factor
