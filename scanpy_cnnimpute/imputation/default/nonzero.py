"""What a count is if it is not zero: lines, a low rank, and a network for what they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..._threads import single_threaded_blas
from .features import BlockNetworks, batches, correlated_genes, network_inputs, stacked
from .low_rank import GeneLines, LowRank, fit_lines, fit_low_rank

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tqdm import tqdm

    from .features import PredictAt

SMALLEST = np.float32(np.log(2.0))  # log1p of one count: a non-zero is not less
ARRAYS = "arrays.npz"
MOST_CELLS = 5_000  # to learn from; the others are only described
DESCRIBED_CELLS = 5_000  # at a time
CELLS_PER_COMPONENT = 10
FEWEST_COMPONENTS = 5
N_CHANNELS = 5
NOISE_BINS = 40
NOISE_PRIOR = 20.0  # entries' weight of the common variance in that of a gene


@dataclass(frozen=True, kw_only=True)
class Visible:
    """What a network may know of some cells: everything but the entries that are hidden.

    Attributes
    ----------
    residuals
        ``(n_cells, n_genes)`` standardised residuals of the visible non-zeros, of all genes.
    lines, low_rank, neighbours, correlations
        Fitted to them; the latter two ``(n_network_genes, n_top)``, positions among the network's genes.
    scores, moments, depth
        Of the cells.
    """

    residuals: sp.csr_array
    depth: np.ndarray
    lines: GeneLines
    low_rank: LowRank
    scores: np.ndarray
    moments: np.ndarray
    neighbours: np.ndarray
    correlations: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of log1p(counts) of the non-zeros around their prediction.

    Attributes
    ----------
    level, variance
        Predicted values, rising, and the variance there.
    factor
        ``(n_genes,)`` what a gene's variance is multiplied by.
    """

    level: np.ndarray
    variance: np.ndarray
    factor: np.ndarray

    def sd(self, predicted: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Standard deviation for a block of predictions, float32."""
        return np.sqrt(np.interp(predicted, self.level, self.variance) * self.factor[genes]).astype(np.float32)


class ConditionalNetworks(BlockNetworks):
    """Predict log1p(count), given that it is not zero, for every cell and gene.

    A line per gene in log library size; a low rank of the residuals; and, added to them, a convolutional network that
    reads the visible residuals of the genes most correlated with each target, and what the low rank says of it. The
    network learns from entries that were hidden from everything it reads: neither line, nor low rank, nor the choice
    of correlated genes has seen them.
    """

    batch_entries = 60_000
    largest_batch = 64

    @property
    def n_stages(self) -> int:
        """The fit to everything, those without a fold, and the networks."""
        return 1 + self.settings.n_folds + self.settings.n_members

    def save(self, folder: Path) -> dict[str, Any]:
        """Write networks and arrays into a folder; returns what to tell :meth:`load`."""
        files = []
        for member, weights in enumerate(self._weights):
            files.append(f"member{member:02d}.keras")
            self._network(weights).save(folder / files[-1], include_optimizer=False)
        arrays = {
            f"{part}_{name}": value
            for part in ("lines", "low_rank", "noise")
            for name, value in vars(getattr(self, part)).items()
        }
        np.savez(
            folder / ARRAYS,
            genes=self._genes,
            features=self._features,
            neighbours=self._neighbours,
            correlations=self._correlations,
            **arrays,
        )
        return {"files": files}

    def load(self, folder: Path, description: dict[str, Any]) -> None:
        """Read what :meth:`save` wrote."""
        from keras.saving import load_model

        with np.load(folder / ARRAYS) as arrays:
            self._genes, self._features = arrays["genes"], arrays["features"]
            self._neighbours, self._correlations = arrays["neighbours"], arrays["correlations"]

            def part(name: str) -> dict[str, Any]:
                prefix = f"{name}_"
                return {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}

            self.lines = GeneLines(**{**part("lines"), "depth_mean": float(arrays["lines_depth_mean"])})
            self.low_rank = LowRank(**part("low_rank"))
            self.noise = Noise(**part("noise"))
        self._weights = [load_model(folder / file, compile=False).get_weights() for file in description["files"]]

    def _fit(self, counts: sp.csr_array, cells: np.ndarray, bar: tqdm[Any]) -> None:
        """Fit to the non-zeros of the cells, or of `MOST_CELLS` drawn from them."""
        fold_seed, *seeds, draw_seed = np.random.SeedSequence(self.random_state).spawn(2 + self.settings.n_members)
        if cells.size > MOST_CELLS:
            cells = np.sort(np.random.default_rng(draw_seed).choice(cells, MOST_CELLS, replace=False))
        settings, counts = self.settings, sp.csr_array(counts[cells])
        library_size = counts.sum(axis=1, dtype=np.float64)
        n_cells = counts.shape[0]
        detected = np.bincount(counts.indices, minlength=counts.shape[1])
        self._choose_genes(detected, n_cells)
        fold = np.random.default_rng(fold_seed).integers(settings.n_folds, size=counts.nnz)

        full = self._visible(counts, library_size)
        bar.update()
        self.lines, self.low_rank = full.lines, full.low_rank
        self._neighbours, self._correlations = full.neighbours, full.correlations
        self._features = self._gene_features(counts, detected)
        hidden = []
        for number in range(settings.n_folds):
            hidden.append(self._hide(counts, library_size, fold == number, full))
            bar.update()
        self.history, self._weights, residuals = [], [], []
        for member, seed in enumerate(seeds):
            validation = member % settings.n_folds
            models = [self._train(hidden, validation, np.random.default_rng(seed), member)] if self._trainable else []
            residuals.append(self._out_of_fold(models, *hidden[validation]))
            bar.update()
        self.noise = _fit_noise(np.concatenate(residuals, axis=1), counts.shape[1])

    def predict(self, counts: sp.csr_array, cells: np.ndarray) -> Iterator[tuple[np.ndarray, PredictAt]]:
        """Blocks of cells with what predicts log1p(count) of a non-zero."""
        models = [self._network(weights) for weights in self._weights]
        every = np.arange(counts.shape[1])
        for first in range(0, cells.size, DESCRIBED_CELLS):
            chunk = cells[first : first + DESCRIBED_CELLS]
            part = sp.csr_array(counts[chunk])
            visible = self._describe(part, part.sum(axis=1, dtype=np.float64))
            for start in range(0, chunk.size, self._prediction_size()):
                rows = np.arange(start, min(start + self._prediction_size(), chunk.size))
                predicted = self._predict_rows(models, visible, rows)
                deviation = self.noise.sd(predicted, every)

                def predict_at(
                    indptr: np.ndarray,
                    genes: np.ndarray,
                    both: tuple[np.ndarray, np.ndarray] = (predicted, deviation),
                ) -> tuple[np.ndarray, np.ndarray]:
                    entries = np.repeat(np.arange(indptr.size - 1), np.diff(indptr)), genes
                    return both[0][entries].astype(np.float32), both[1][entries].astype(np.float32)

                yield chunk[rows], predict_at

    def _predict_rows(self, models: list[Any], visible: Visible, rows: np.ndarray) -> np.ndarray:
        base = visible.scores[rows] @ visible.low_rank.loadings.T
        base[:, self._genes] += self._run_models(models, rows, lambda padded: self._inputs(visible, padded))
        predicted = visible.lines.at(visible.depth[rows]) + visible.lines.sd * base
        return np.maximum(predicted, SMALLEST)

    def _visible(self, counts: sp.csr_array, library_size: np.ndarray, full: Visible | None = None) -> Visible:
        """Fit everything to these counts; with `full`, start from it and keep its scale of the residuals."""
        lines = fit_lines(counts, library_size)
        if full is not None:
            lines = GeneLines(
                intercept=lines.intercept, slope=lines.slope, sd=full.lines.sd, depth_mean=lines.depth_mean
            )
        depth = lines.depth(library_size)
        residuals = lines.standardise(counts, depth)
        low_rank = fit_low_rank(
            residuals, self._n_components(counts.shape[0]), start=None if full is None else full.low_rank
        )
        scores, moments = low_rank.scores(residuals)
        neighbours, correlations = correlated_genes(residuals[:, self._genes].toarray(), self.settings.n_top)
        return Visible(
            residuals=residuals,
            depth=depth,
            lines=lines,
            low_rank=low_rank,
            scores=scores,
            moments=moments,
            neighbours=neighbours,
            correlations=correlations,
        )

    def _describe(self, counts: sp.csr_array, library_size: np.ndarray) -> Visible:
        """What is known of cells, new or not, by what was fitted."""
        depth = self.lines.depth(library_size)
        residuals = self.lines.standardise(counts, depth)
        with single_threaded_blas():
            scores, moments = self.low_rank.scores(residuals)
        return Visible(
            residuals=residuals,
            depth=depth,
            lines=self.lines,
            low_rank=self.low_rank,
            scores=scores,
            moments=moments,
            neighbours=self._neighbours,
            correlations=self._correlations,
        )

    def _hide(
        self, counts: sp.csr_array, library_size: np.ndarray, hide: np.ndarray, full: Visible
    ) -> tuple[Visible, sp.csr_array]:
        """Fit without some of the entries; also returns those, as log1p(counts)."""

        def part(which: np.ndarray) -> sp.csr_array:
            # Where an entry goes, in the order of the data.
            kept = np.concatenate([[0], np.cumsum(which)])
            return sp.csr_array((counts.data[which], counts.indices[which], kept[counts.indptr]), shape=counts.shape)

        # Library sizes stay those of all counts: they are known of any cell.
        return self._visible(part(~hide), library_size, full), part(hide).astype(np.float32).log1p()

    def _gene_features(self, counts: sp.csr_array, detected: np.ndarray) -> np.ndarray:
        mean = np.bincount(counts.indices, weights=np.log1p(counts.data), minlength=counts.shape[1])
        mean = mean / np.maximum(detected, 1)
        sd = self.lines.sd
        features = np.column_stack(
            [
                mean - mean.mean(),
                (sd - sd.mean()) / (sd.std() + 1e-6),
                2 * detected / counts.shape[0] - 1,
                1 / np.sqrt(self.low_rank.precision) - 1,
            ]
        )
        return features[self._genes].astype(np.float32)

    def _n_components(self, n_cells: int) -> int:
        """Fewer where there are few cells to find them in."""
        return min(self.settings.n_components, max(n_cells // CELLS_PER_COMPONENT, FEWEST_COMPONENTS))

    def _inputs(self, visible: Visible, rows: np.ndarray) -> list[np.ndarray]:
        """Blocks of correlated genes, features of the targets and of the cells; reads visible entries only."""
        genes, lines, low_rank, depth = self._genes, visible.lines, visible.low_rank, visible.depth
        z = visible.residuals[rows][:, genes]
        seen = np.zeros(z.shape, dtype=np.float32)
        seen[z.nonzero()] = 1
        z = z.toarray()
        loadings = low_rank.loadings[genes]
        k = loadings.shape[1]
        twice = np.where(np.equal(*np.triu_indices(k)), 1, 2).astype(np.float32)
        base = visible.scores[rows] @ loadings.T
        second = (visible.moments[rows] * twice) @ low_rank.loading_moments[genes].T
        uncertainty = np.sqrt(np.maximum(second - base**2, 0))
        level = (lines.intercept + np.outer(depth[rows], lines.slope))[:, genes] + lines.sd[genes] * base
        blocks, of_gene = network_inputs(
            stacked(z, (z - base) * seen, seen, (1 - seen) * (level - 1)),
            1,
            visible.neighbours,
            visible.correlations,
            stacked(base, level, uncertainty),
            np.column_stack([self._features, visible.correlations]),
            visible.scores[rows],
            loadings,
        )
        of_cell = np.column_stack([visible.scores[rows], depth[rows]])
        return [blocks, of_gene, of_cell.astype(np.float32)]

    def _network(self, weights: list[np.ndarray] | None = None, seed: int = 0) -> Any:
        from .architecture import build_block_network, hidden_mse

        k = self.low_rank.loadings.shape[1]
        n_gene_features = 3 + self._features.shape[1] + self.settings.n_top + k
        model = build_block_network(
            (self._genes.size, N_CHANNELS, n_gene_features, k + 1), hidden_mse, self.settings, seed
        )
        if weights is not None:
            model.set_weights(weights)
        return model

    def _train(
        self, hidden: list[tuple[Visible, sp.csr_array]], validation: int, rng: np.random.Generator, member: int
    ) -> Any:
        """Train one network on all folds but one, which decides when it is best."""
        from .architecture import train_block_network

        model = self._network(seed=int(rng.integers(2**30)))
        scale = self.lines.sd[self._genes]
        weight = (scale / np.sqrt(np.mean(scale**2))) ** 2
        every = np.arange(hidden[0][1].shape[0])
        training = [fold for fold in range(self.settings.n_folds) if fold != validation]
        answers = [truth[:, self._genes] for _, truth in hidden]
        order = batches(rng, every, self._batch_size())

        def batch(fold: int, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            inputs = self._inputs(hidden[fold][0], rows)
            target = answers[fold][rows]
            where = target.nonzero()
            answer = np.zeros((rows.size, self._genes.size, 2), dtype=np.float32)
            # What the line and the low rank leave, in the gene's standard deviations.
            level = inputs[1][..., 1]
            answer[(*where, 0)] = ((target.toarray() - level) / scale)[where]
            answer[(*where, 1)] = np.broadcast_to(weight, level.shape)[where]
            return inputs, answer

        history = train_block_network(
            model,
            lambda: batch(training[rng.integers(len(training))], next(order)),
            batch(validation, self._check_rows(rng.permutation(every))),
            self.settings,
        )
        self._remember(member, model, history)
        return model

    def _out_of_fold(self, models: list[Any], visible: Visible, truth: sp.csr_array) -> np.ndarray:
        """Prediction, squared error and gene of the entries of a fold, by the network that did not see them."""
        parts = []
        for start in range(0, truth.shape[0], self._prediction_size()):
            rows = np.arange(start, min(start + self._prediction_size(), truth.shape[0]))
            hidden = truth[rows].tocoo()
            if hidden.nnz:
                predicted = self._predict_rows(models, visible, rows)[hidden.coords]
                parts.append(np.stack([predicted, (hidden.data - predicted) ** 2, hidden.coords[1]]))
        return np.concatenate(parts, axis=1) if parts else np.empty((3, 0))


def _fit_noise(residuals: np.ndarray, n_genes: int) -> Noise:
    """Variance over the predicted level, times a factor for each gene, shrunk to 1."""
    predicted, squares, genes = residuals[0], residuals[1], residuals[2].astype(np.int64)
    if predicted.size == 0:
        return Noise(level=np.zeros(1), variance=np.zeros(1), factor=np.ones(n_genes))
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, NOISE_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, max(edges.size - 2, 0))
    n = np.bincount(bins)
    level, variance = np.bincount(bins, predicted) / np.maximum(n, 1), np.bincount(bins, squares) / np.maximum(n, 1)
    level, variance = level[n > 0], variance[n > 0]
    share = squares / np.maximum(np.interp(predicted, level, variance), 1e-12)
    factor = (np.bincount(genes, share, minlength=n_genes) + NOISE_PRIOR) / (
        np.bincount(genes, minlength=n_genes) + NOISE_PRIOR
    )
    return Noise(level=level, variance=variance, factor=factor)
