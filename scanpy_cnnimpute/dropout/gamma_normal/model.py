"""The gamma-normal mixture of all genes in all clusters, and the dropout probability of any entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from scipy.special import expit, gammaln, xlogy

from ..._records import ArrayRecord, array, column
from ...clustering.profiles import codes_of, mean_profiles, nearest_profiles
from ..base import CALLED, Clusters, DropoutFit, DropoutModel
from .em import FIT_FAILED, FIT_NO_COUNTS, LOG_SQRT_2PI, fit_genes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from ..._counts import Counts

PARAMETERS = ("rate", "alpha", "beta", "mu", "sigma")
"""eta, alpha, beta, mu and sigma of equation 1."""

STATUSES = ("modelled", "no counts", "fit failed", "mean too low", "gamma above normal")
"""Why a gene is, or is not, modelled in a cluster; codes are positions."""

# Constants of the published program.
PSEUDOCOUNT = 1.01
ZERO = float(np.log10(PSEUDOCOUNT))
"""The transformed value of a count of zero."""
MAX_NONZERO = 0.4  # largest probability of a non-zero count
MIN_MEAN = float(np.log10(2.01))  # smallest mean of the normal distribution of a modelled gene

COLLAPSED = 0.01  # a gamma whose mean is this close to ZERO, relatively, describes the zeros alone


def log10_cpm(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    """Transform counts to log10(CPM + 1.01), float64; both arguments broadcast."""
    return np.log10(counts * (1e6 / library_size) + PSEUDOCOUNT)


@dataclass(frozen=True, kw_only=True)
class GammaNormalCells(ArrayRecord):
    """What the gamma-normal model knows of some cells.

    Attributes
    ----------
    library_size
        ``(n_cells,)`` total counts.
    cluster
        ``(n_cells,)`` position of the cluster in the model's names; -1 for none.
    """

    library_size: np.ndarray = column("f8")
    cluster: np.ndarray = column("i4")


@dataclass(frozen=True, kw_only=True)
class GammaNormalModel(DropoutModel):
    """Fitted mixtures, ``(n_genes, n_clusters)`` arrays; NaN where nothing was fitted.

    Attributes
    ----------
    rate
        Proportion of the gamma distribution, which stands for dropouts.
    alpha, beta
        Its shape and rate.
    mu, sigma
        Mean and standard deviation of the normal distribution, in log10(CPM + 1.01).
    status
        Positions in :data:`STATUSES`.
    profiles
        Mean log1p(CP10k), by which other cells find their cluster.
    names
        ``(n_clusters,)`` names of the clusters.
    """

    name: ClassVar[str] = "gamma_normal"
    cells_type: ClassVar[type[ArrayRecord]] = GammaNormalCells
    needs_clusters: ClassVar[bool] = True
    counts_molecules: ClassVar[bool] = False

    rate: np.ndarray = array("f8", "genes", "clusters", may_be_nan=True)
    alpha: np.ndarray = array("f8", "genes", "clusters", may_be_nan=True)
    beta: np.ndarray = array("f8", "genes", "clusters", may_be_nan=True)
    mu: np.ndarray = array("f8", "genes", "clusters", may_be_nan=True)
    sigma: np.ndarray = array("f8", "genes", "clusters", may_be_nan=True)
    status: np.ndarray = array("i1", "genes", "clusters")
    profiles: np.ndarray = array("f4", "genes", "clusters")
    names: np.ndarray = array("U", "clusters")

    @classmethod
    def fit(
        cls,
        counts: Counts,
        *,
        clusters: Clusters | None = None,
        capture_efficiency: np.ndarray | None = None,
        count_type: str = "umi",
        random_state: int = 0,
    ) -> DropoutFit:
        """Fit in each cluster; default: all cells are one. See :meth:`DropoutModel.fit`, :func:`fit_mixture`."""
        clusters = clusters or Clusters.single(counts.shape[0])
        library_size, loaded = counts.totals.library_size, counts.load()
        # A cell without counts has no library to scale to.
        codes = np.where(library_size > 0, clusters.codes, -1)
        parameters, status = fit_mixture(loaded, library_size, codes, len(clusters.names))
        model = cls(
            **{name: np.ascontiguousarray(parameters[..., k]) for k, name in enumerate(PARAMETERS)},
            status=status,
            profiles=mean_profiles(loaded, codes, len(clusters.names)),
            names=np.array(clusters.names, dtype=str),
        )
        return DropoutFit(model=model, cells=GammaNormalCells(library_size=library_size, cluster=codes), tables={})

    def check_consistent(self) -> None:
        """Refuse values that no fit gives; see :meth:`ArrayRecord.check_consistent`."""
        self._check_range("status", 0, len(STATUSES) - 1)
        self._check_range("rate", 0, 1)
        for name in ("alpha", "beta", "sigma"):
            self._check_range(name, np.finfo(np.float64).tiny)
        if not np.isfinite(self.parameters[self.modelled]).all():
            msg = "modelled genes have parameters that are NaN or infinite"
            raise ValueError(msg)

    def describe(
        self,
        counts: csr_array,
        *,
        clusters: Clusters | None = None,
        capture_efficiency: np.ndarray | None = None,
    ) -> GammaNormalCells:
        """Library size and cluster of any cells: the cluster given, or the one with the nearest profile."""
        if clusters is None:
            codes = nearest_profiles(counts, self.profiles)
        else:
            codes = codes_of(clusters.names, self.names.tolist(), clusters.codes)
        return GammaNormalCells(library_size=counts.sum(axis=1, dtype=np.float64), cluster=codes)

    @property
    def parameters(self) -> np.ndarray:
        """All parameters, ``(n_genes, n_clusters, 5)``, in the order of :data:`PARAMETERS`."""
        return np.stack([getattr(self, name) for name in PARAMETERS], axis=-1)

    @property
    def modelled(self) -> np.ndarray:
        """Genes whose mixture was fitted and is accepted, ``(n_genes, n_clusters)``."""
        return self.status == 0

    def clusters(self, cells: GammaNormalCells) -> Clusters:
        """The clusters that the mixtures were fitted in."""
        return Clusters(codes=cells.cluster.astype(np.int64), names=self.names.tolist())

    def zero_probability(self) -> np.ndarray:
        """Probability that a zero is a dropout, ``(n_genes, n_clusters)`` float64; 0 where a gene is not modelled.

        All zeros of a gene in a cluster share one transformed value, hence one probability.
        """
        probability = np.zeros(self.status.shape)
        probability[self.modelled] = _corrected_probability(ZERO, self.parameters[self.modelled], counted=False)
        return probability

    def probability(self, counts: csr_array, cells: GammaNormalCells) -> np.ndarray:
        """Equation 2 at zeros; at most 0.4 at counts; 0 for cells without a cluster and genes that are not modelled."""
        codes = cells.cluster.astype(np.int64)
        # Codes of -1 pick the appended row of zeros.
        at_zero = np.vstack([self.zero_probability().T, np.zeros(self.status.shape[0])]).astype(np.float32)
        block = at_zero[codes]
        entries = counts.tocoo()
        rows, genes = entries.coords
        cluster = codes[rows]
        block[rows, genes] = 0.0
        modelled = (cluster >= 0) & (self.status[genes, cluster] == 0)
        rows, genes, cluster = rows[modelled], genes[modelled], cluster[modelled]
        x = log10_cpm(entries.data[modelled].astype(np.float64), cells.library_size[rows])
        block[rows, genes] = _corrected_probability(x, self.parameters[genes, cluster], counted=True)
        return block

    def summary(self, counts: Counts, cells: GammaNormalCells, clusters: Clusters) -> pd.DataFrame:
        """Cells, modelled genes, zeros called dropouts, and collapsed mixtures of each cluster of the fit.

        ``collapsed`` is the share of the modelled genes whose gamma has its mean within 1 % of the value of a zero: it
        describes the zeros alone, and calls all of them dropouts.
        """
        called, loaded = self.zero_probability() > CALLED, counts.load()
        rows = []
        for cluster in range(self.names.size):
            members = np.flatnonzero(cells.cluster == cluster)
            zeros = members.size - np.diff(loaded[members].tocsc().indptr)
            modelled = self.modelled[:, cluster]
            gamma_mean = self.alpha[modelled, cluster] / self.beta[modelled, cluster]
            rows.append(
                {
                    "n_cells": members.size,
                    "n_modelled": int(modelled.sum()),
                    "zeros_called": zeros[called[:, cluster]].sum() / max(zeros.sum(), 1),
                    "collapsed": np.sum(np.abs(gamma_mean / ZERO - 1) < COLLAPSED) / max(modelled.sum(), 1),
                }
            )
        return pd.DataFrame(rows)


def _log_densities(x: np.ndarray | float, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log densities at `x` of the gamma and of the normal component, without their proportions."""
    _, alpha, beta, mu, sigma = np.moveaxis(parameters, -1, 0)
    gamma = xlogy(alpha, beta) - gammaln(alpha) + xlogy(alpha - 1.0, x) - beta * x
    normal = -np.log(sigma) - LOG_SQRT_2PI - 0.5 * ((x - mu) / sigma) ** 2
    return gamma, normal


def gamma_normal_posterior(x: np.ndarray | float, parameters: np.ndarray) -> np.ndarray:
    """Equation 2 of the paper: probability that `x` came from the gamma (dropout) component.

    Parameters
    ----------
    x
        Transformed values, log10(CPM + 1.01); broadcasts against the leading axes of `parameters`.
    parameters
        ``(..., 5)`` in the order of :data:`PARAMETERS`.

    Returns
    -------
    Probabilities, float64. Computed from log densities, so that nothing underflows.
    """
    gamma, normal = _log_densities(x, parameters)
    rate = parameters[..., 0]
    return expit(np.log(rate) + gamma - np.log1p(-rate) - normal)


def _corrected_probability(x: np.ndarray | float, parameters: np.ndarray, *, counted: bool) -> np.ndarray:
    """Equation 2 with the published corrections: nothing above the mean is a dropout, and no count is one."""
    probability = gamma_normal_posterior(x, parameters)
    probability = np.where((probability > CALLED) & (x > parameters[..., 3]), 0.0, probability)
    return np.minimum(probability, MAX_NONZERO) if counted else probability


def fit_mixture(
    counts: csr_array, library_size: np.ndarray, clusters: np.ndarray, n_clusters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the mixture of every gene in every cluster by expectation-maximisation.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, non-negative, without stored zeros.
    library_size
        ``(n_cells,)`` total counts of each cell.
    clusters
        ``(n_cells,)`` cluster of each cell, from 0; -1 for cells to be left out.
    n_clusters
        Number of clusters.

    Returns
    -------
    Parameters ``(n_genes, n_clusters, 5)`` float64 in the order of
    :data:`~scanpy_cnnimpute.dropout.gamma_normal.model.PARAMETERS`, NaN where nothing was fitted, and status
    ``(n_genes, n_clusters)`` int8. They do not depend on the number of threads.

    Notes
    -----
    Equation 1 of the paper, on log10(CPM + 1.01), with the start, the stopping rule and the rules for modelled genes
    of the published program: a gene is modelled in a cluster where it has counts, the fit succeeded, mu > log10(2.01),
    and not (mu <= 1 while the gamma density at mu + 1 reaches the normal density there).
    """
    n_genes = counts.shape[1]
    parameters = np.full((n_genes, n_clusters, len(PARAMETERS)), np.nan)
    status = np.full((n_genes, n_clusters), FIT_NO_COUNTS, dtype=np.int8)
    for cluster in range(n_clusters):
        cells = np.flatnonzero(clusters == cluster)
        block = counts[cells].tocsc()
        x = log10_cpm(block.data.astype(np.float64), library_size[cells][block.indices])
        fitted = np.empty((n_genes, len(PARAMETERS)))
        codes = np.empty(n_genes, dtype=np.int8)
        fit_genes(x, block.indptr, cells.size, ZERO, fitted, codes)
        parameters[:, cluster] = fitted
        status[:, cluster] = _gene_status(fitted, codes)
    return parameters, status


def _gene_status(parameters: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Apply the published rules to the fitted genes of one cluster; returns positions in `STATUSES`."""
    status = codes.copy()
    fitted = np.flatnonzero((codes != FIT_NO_COUNTS) & (codes != FIT_FAILED))
    mu = parameters[fitted, 3]
    # Densities, not their logarithms: the published comparison also holds where both underflow to 0.
    with np.errstate(under="ignore", over="ignore"):
        gamma, normal = (np.exp(log_density) for log_density in _log_densities(mu + 1.0, parameters[fitted]))
    status[fitted[(gamma >= normal) & (mu <= 1.0)]] = STATUSES.index("gamma above normal")
    status[fitted[mu <= MIN_MEAN]] = STATUSES.index("mean too low")
    return status
