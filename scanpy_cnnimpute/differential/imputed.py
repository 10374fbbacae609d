"""Imputed values of genes and of their decoys, from the fitted model and imputer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._counts import Counts
from .._matrix import evenly_spaced
from ..dropout import ModelledDropout
from ..dropout.calibrated.factorisation import fit_loadings
from ..dropout.calibrated.model import MAX_CELLS
from ..imputation.assemble import imputed_columns
from ..imputation.default.features import correlated_genes
from ..imputation.default.molecules import pearson_residuals
from .decoys import decoys_of

if TYPE_CHECKING:
    from ..dropout.calibrated import CalibratedCells, CalibratedModel
    from ..imputation.default import MoleculeImputer

MAX_RESIDUAL_BYTES = 2**30  # of the residuals that correlated genes are chosen by


class ImputedDecoys:
    """Imputed values of genes and decoys for the cells that are compared.

    Decoys are further genes of the same model: their counts are permuted among the compared cells, other cells keep
    theirs; their loadings are fitted to the stored scores of the cells, as those of the genes are again; shape and
    network are those of the gene, and their correlated genes are chosen as a gene's are.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts as the user has them.
    model, cells, imputer
        The fitted model, its description of the cells, and the imputer.
    compared
        Positions of the cells that are compared.
    random_state
        Seed of the permutations.
    """

    def __init__(
        self,
        counts: sp.csr_array,
        model: CalibratedModel,
        cells: CalibratedCells,
        imputer: MoleculeImputer,
        compared: np.ndarray,
        random_state: int,
    ) -> None:
        self._model, self._imputer, self._random_state = model, imputer, random_state
        self._counts, self._cells = counts[compared], cells.take(cells=compared)
        self._by_gene = self._counts.tocsc()
        # Loadings are fitted to as many cells as a dropout model is: compared cells first, then others.
        own = evenly_spaced(compared.size, MAX_CELLS // 2 if compared.size > MAX_CELLS else compared.size)
        others = np.setdiff1d(np.arange(counts.shape[0]), compared)
        others = others[evenly_spaced(others.size, max(MAX_CELLS - own.size, 1))] if others.size else others
        self._fit_own = own
        rest = counts[others]
        self._rest = rest.tocsc()
        self._fit_cells = cells.take(cells=np.concatenate([compared[own], others]))
        self._residuals: np.ndarray | None = None
        if imputer.weights:
            known = np.flatnonzero(imputer.neighbours[:, 0] >= 0)
            limit = MAX_RESIDUAL_BYTES // (4 * max(known.size, 1))
            self._chosen = evenly_spaced(self._fit_cells.library_size.size, max(limit, 1))
            self._known = known
            whole = sp.csr_array(sp.vstack([self._counts[own], rest]))
            described = self._fit_cells.take(cells=self._chosen)
            molecules = model.molecules(whole[self._chosen], described)
            self._residuals = pearson_residuals(molecules, described.scores, model.loadings, model.shape, known)

    def block(self, genes: np.ndarray, n_decoys: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Values of some genes, and of their decoys, ``(n_compared, genes.size)`` float32 for each.

        Parameters
        ----------
        genes
            Positions of the genes, rising.
        n_decoys
            Number of decoys of each gene, one after the other along the second axis.
        """
        own = self._by_gene[:, genes].toarray()
        decoys = decoys_of(own, self._cells.library_size, self._model.gene_ids[genes], self._random_state, n_decoys)
        both, n_copies = np.concatenate([own, decoys], axis=1), 1 + n_decoys
        fitted = np.concatenate([both[self._fit_own], np.tile(self._rest[:, genes].toarray(), (1, n_copies))])
        model = self._extended_model(genes, n_copies, fitted)
        imputer = self._extended_imputer(genes, n_copies, fitted, model)
        extended = Counts.of(sp.csr_array(sp.hstack([self._counts, sp.csr_array(both)])))
        added = self._counts.shape[1] + np.arange(both.shape[1])
        values = imputed_columns(imputer, extended, ModelledDropout(extended, model, self._cells), added)
        values = values.astype(np.float32, copy=False)
        return values[:, : genes.size], values[:, genes.size :]

    def _extended_model(self, genes: np.ndarray, n_copies: int, fitted: np.ndarray) -> CalibratedModel:
        """The model with the genes again, and their decoys, as further genes whose loadings are fitted anew."""
        again = self._model.take(genes=np.tile(genes, n_copies))
        molecules = again.molecules(sp.csr_array(fitted), self._fit_cells)
        loadings = fit_loadings(molecules, self._fit_cells.scores)
        again = replace(again, loadings=loadings, gene_ids=self._new_ids(again.gene_ids.size))
        return _joined(self._model, again)

    def _extended_imputer(
        self, genes: np.ndarray, n_copies: int, fitted: np.ndarray, model: CalibratedModel
    ) -> MoleculeImputer:
        """The imputer with the same further genes, decoys with correlated genes of their own."""
        again = self._imputer.take(genes=np.tile(genes, n_copies))
        again.gene_ids = self._new_ids(again.gene_ids.size)
        if n_copies > 1 and self._residuals is not None:
            with_network = np.flatnonzero(self._imputer.neighbours[genes, 0] >= 0)
            decoys = genes.size * np.arange(1, n_copies)
            places = (decoys[:, None] + with_network).ravel()
            added = model.take(genes=self._counts.shape[1] + places)
            described = self._fit_cells.take(cells=self._chosen)
            molecules = added.molecules(sp.csr_array(fitted[self._chosen][:, places]), described)
            every = np.arange(places.size)
            residuals = pearson_residuals(molecules, described.scores, added.loadings, added.shape, every)
            own = np.tile(np.searchsorted(self._known, genes[with_network]), n_copies - 1)
            n_top = again.neighbours.shape[1]
            neighbours, correlations = correlated_genes(self._residuals, n_top, targets=residuals, own=own)
            again.neighbours[places] = self._imputer.gene_ids[self._known[neighbours]]
            again.correlations[places] = correlations
        return _joined(self._imputer, again)

    def _new_ids(self, n: int) -> np.ndarray:
        """Ids that no gene has."""
        return (self._model.gene_ids.max(initial=0) + 1 + np.arange(n)).astype(np.int32)


def _joined(first, second):  # type: ignore[no-untyped-def]
    """Two records, one after the other along the genes."""
    names = [name for name, spec in first.specs().items() if spec.axis == "genes" and getattr(first, name) is not None]
    return replace(first, **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})
