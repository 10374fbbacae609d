"""The gamma-normal mixture of all genes in all clusters, and the dropout probability of any entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import expit, gammaln, xlogy

from .em import FIT_FAILED, FIT_NO_COUNTS, LOG_SQRT_2PI, fit_genes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PARAMETERS = ("rate", "alpha", "beta", "mu", "sigma")
"""eta, alpha, beta, mu and sigma of equation 1."""

STATUSES = ("modelled", "no counts", "fit failed", "mean too low", "gamma above normal")
"""Why a gene is, or is not, modelled in a cluster; the codes are the positions."""

PSEUDOCOUNT = 1.01
ZERO = float(np.log10(PSEUDOCOUNT))
"""The transformed value of a count of zero."""

CALLED = 0.5  # the published program's threshold, applied again when the probabilities are corrected
NONZERO_CAP = 0.4  # its largest probability for a non-zero count
COLLAPSED = 0.01  # a gamma whose mean is this close to ZERO, relatively, describes the zeros alone
LOWEST_MEAN = float(np.log10(2.01))


def log10_cpm(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    """Transform counts to log10(CPM + 1.01), float64; both arguments broadcast."""
    return np.log10(counts * (1e6 / library_size) + PSEUDOCOUNT)


@dataclass(frozen=True, kw_only=True)
class GammaNormalMixture:
    """Fitted mixtures.

    Attributes
    ----------
    parameters
        ``(n_genes, n_clusters, 5)`` float64 in the order of :data:`PARAMETERS`; NaN where nothing was fitted.
    status
        ``(n_genes, n_clusters)`` int8, positions in :data:`STATUSES`.
    """

    parameters: np.ndarray
    status: np.ndarray

    def zero_probability(self) -> np.ndarray:
        """Probability that a zero is a dropout: ``(n_genes, n_clusters)`` float64, 0 where a gene is not modelled.

        All zeros of a gene in a cluster share one transformed value, hence one probability.
        """
        modelled = self.status == 0
        probability = np.zeros(self.status.shape)
        probability[modelled] = _corrected_probability(ZERO, self.parameters[modelled], counted=False)
        return probability

    def probability(self, counts: csr_array, library_size: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Probability of every entry of a block of cells.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)`` counts of the block, without stored zeros.
        library_size
            ``(n_cells,)`` total counts of each cell over all genes.
        clusters
            ``(n_cells,)`` cluster of each cell; -1 for none (probability 0).

        Returns
        -------
        ``(n_cells, n_genes)`` float32: equation 2 at zeros; never above 0.4 at counts.
        """
        # Codes of -1 pick the appended row of zeros.
        at_zero = np.vstack([self.zero_probability().T, np.zeros(self.status.shape[0])]).astype(np.float32)
        block = at_zero[clusters]
        entries = counts.tocoo()
        rows, genes = entries.coords
        cluster = clusters[rows]
        block[rows, genes] = 0.0
        modelled = (cluster >= 0) & (self.status[genes, cluster] == 0)
        rows, genes, cluster = rows[modelled], genes[modelled], cluster[modelled]
        x = log10_cpm(entries.data[modelled].astype(np.float64), library_size[rows])
        block[rows, genes] = _corrected_probability(x, self.parameters[genes, cluster], counted=True)
        return block

    def take(self, genes: np.ndarray | slice) -> GammaNormalMixture:
        """The mixtures of some genes, in the order given."""
        return GammaNormalMixture(parameters=self.parameters[genes], status=self.status[genes])

    def summary(self, counts: csr_array, clusters: np.ndarray) -> pd.DataFrame:
        """What the fit says about each cluster.

        Parameters
        ----------
        counts, clusters
            What the mixtures were fitted to.

        Returns
        -------
        One row per cluster: ``n_cells``, ``n_modelled`` (genes), ``zeros_called`` (share of the zeros with a
        probability above 0.5) and ``collapsed`` (share of the modelled genes whose gamma has its mean within 1 % of
        the zeros' value: it describes the zeros alone, and calls all of them dropouts).
        """
        called = self.zero_probability() > CALLED
        rows = []
        for cluster in range(self.status.shape[1]):
            cells = np.flatnonzero(clusters == cluster)
            zeros = cells.size - np.diff(counts[cells].tocsc().indptr)
            modelled = self.status[:, cluster] == 0
            gamma_mean = self.parameters[modelled, cluster, 1] / self.parameters[modelled, cluster, 2]
            rows.append(
                {
                    "n_cells": cells.size,
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
    return np.minimum(probability, NONZERO_CAP) if counted else probability


def fit_mixture(
    counts: csr_array, library_size: np.ndarray, clusters: np.ndarray, n_clusters: int
) -> GammaNormalMixture:
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
    The fitted mixtures. The result does not depend on the number of threads.

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
    return GammaNormalMixture(parameters=parameters, status=status)


def _gene_status(parameters: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Apply the published rules to the fitted genes of one cluster; returns positions in `STATUSES`."""
    status = codes.copy()
    fitted = np.flatnonzero((codes != FIT_NO_COUNTS) & (codes != FIT_FAILED))
    mu = parameters[fitted, 3]
    # Densities, not their logarithms: the published comparison also holds where both underflow to 0.
    with np.errstate(under="ignore", over="ignore"):
        gamma, normal = (np.exp(log_density) for log_density in _log_densities(mu + 1.0, parameters[fitted]))
    status[fitted[(gamma >= normal) & (mu <= 1.0)]] = STATUSES.index("gamma above normal")
    status[fitted[mu <= LOWEST_MEAN]] = STATUSES.index("mean too low")
    return status
