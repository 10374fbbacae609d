"""The mixture against the authors' program, a plain transcription and planted truth."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma

from scanpy_cnnimpute import datasets
from scanpy_cnnimpute.dropout import PARAMETERS, STATUSES, ZERO, fit_mixture, gamma_normal_posterior, log10_cpm
from scanpy_cnnimpute.dropout.gamma_normal.em import MAX_SHAPE, _digamma_and_trigamma, _gamma_shape

# tests/data/reference_mixture.csv.gz, reference_posterior.csv.gz: R 4.2.2, the authors' get_mix_parameters,
# find_va_genes and calculate_weight on sc_celseq2_5cl_p1 (genes seen in >= 10 cells), in the clusters and with the
# library sizes of reference_cells.csv.gz; 500 of the bundled genes.


def shape_equation(a: float, target: float) -> float:
    return np.log(a) - digamma(a) - target


def plain_em(x: np.ndarray) -> np.ndarray:
    """Equation 1 fitted to one gene, zeros included, step by step as the paper's program does it."""
    counted = x[x > ZERO]
    rate = max(np.mean(x == ZERO), 0) or 0.01
    alpha, beta, mu, sigma = 0.5, 1.0, counted.mean(), counted.std(ddof=1)
    previous = 0.0
    for _ in range(101):
        gamma = np.log(rate) + stats.gamma.logpdf(x, alpha, scale=1 / beta)
        normal = np.log1p(-rate) + stats.norm.logpdf(x, mu, sigma)
        w = np.exp(gamma - np.logaddexp(gamma, normal))
        rate, mu = w.mean(), np.average(x, weights=1 - w)
        sigma = np.sqrt(np.average((x - mu) ** 2, weights=1 - w))
        target = np.log(np.average(x, weights=w)) - np.average(np.log(x), weights=w)
        start = (3 - target + np.sqrt((target - 3) ** 2 + 24 * target)) / 12 / target if target > 0 else 20.0
        alpha = 20.0 if start >= 20 else brentq(shape_equation, start / 2, start * 2, (target,))
        beta = alpha / np.average(x, weights=w)
        gamma = np.log(rate) + stats.gamma.logpdf(x, alpha, scale=1 / beta)
        normal = np.log1p(-rate) + stats.norm.logpdf(x, mu, sigma)
        likelihood = np.logaddexp(gamma, normal).sum() / np.log(10)
        if (likelihood - previous) ** 2 <= 0.5:
            break
        previous = likelihood
    return np.array([rate, alpha, beta, mu, sigma])


def random_counts(n_cells: int = 80, n_genes: int = 30, seed: int = 0) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(1.0, 3.0, size=n_genes)
    counts = rng.negative_binomial(2, 2 / (2 + mean), size=(n_cells, n_genes))
    counts[:, 0] = rng.poisson(50, size=n_cells) + 1  # one gene without zeros keeps every cell non-empty
    return sp.csr_array(counts.astype(np.float32))


def test_every_parameter_of_the_reference_program() -> None:
    cells = pd.read_csv(DATA / "reference_cells.csv.gz", index_col=0)
    reference = pd.read_csv(DATA / "reference_mixture.csv.gz")
    adata = datasets.five_cell_lines()[cells.index, reference["gene"].unique()]
    counts = sp.csr_array(adata.X)
    mixture = fit_mixture(counts, cells["library_size"].to_numpy(float), cells["kmeans_cluster"].to_numpy() - 1, 5)
    table = reference.set_index(["gene", "cluster"])
    checked = []
    for cluster in range(5):
        members = (cells["kmeans_cluster"] == cluster + 1).to_numpy()
        seen = np.diff(counts[members].tocsc().indptr)
        theirs = table.xs(cluster + 1, level="cluster").reindex(adata.var_names)
        valid = theirs["valid"].eq(True).to_numpy()
        many = seen >= 5
        # With two or more non-zeros both programs model the same genes; with one, neither does.
        np.testing.assert_array_equal((mixture.status[:, cluster] == 0)[many], valid[many])
        assert not (mixture.status[:, cluster] == 0)[seen <= 1].any()
        ours = mixture.parameters[many & valid, cluster]
        error = np.abs(ours / theirs.loc[many & valid, list(PARAMETERS)].to_numpy() - 1).max(axis=1)
        checked.append(error)
    error = np.concatenate(checked)
    assert error.size > 2000
    # R's uniroot stops at about 1e-4 for the shape; where no root is sought, the agreement is far closer.
    assert error.max() < 1e-3
    assert np.mean(error < 1e-6) > 0.85


def test_equation_2_of_the_reference_program() -> None:
    reference = pd.read_csv(DATA / "reference_posterior.csv.gz")
    ours = gamma_normal_posterior(reference["x"].to_numpy(), reference[list(PARAMETERS)].to_numpy())
    assert np.abs(ours - reference["posterior"]).max() < 1e-9


def test_em_equals_a_plain_transcription() -> None:
    counts = random_counts()
    library = counts.sum(axis=1).astype(float)
    mixture = fit_mixture(counts, library, np.zeros(80, dtype=int), 1)
    x = log10_cpm(counts.toarray().astype(float), library[:, None])
    for gene in np.flatnonzero(mixture.status[:, 0] == 0):
        np.testing.assert_allclose(mixture.parameters[gene, 0], plain_em(x[:, gene]), rtol=1e-6)


def test_recovers_planted_components() -> None:
    # Counts at two well separated levels of CPM: the normal takes the upper, the gamma the zeros.
    rng = np.random.default_rng(0)
    n = 2000
    detected = rng.random(n) < 0.6
    x = np.where(detected, rng.normal(2.5, 0.2, size=n), ZERO)
    library = np.full(n, 1e6)
    counts = sp.csr_array(np.where(detected, 10**x - 1.01, 0.0)[:, None])
    rate, _, _, mu, sigma = fit_mixture(counts, library, np.zeros(n, dtype=int), 1).parameters[0, 0]
    # Three standard errors of each estimate.
    assert rate == pytest.approx(0.4, abs=3 * np.sqrt(0.24 / n))
    assert mu == pytest.approx(2.5, abs=3 * 0.2 / np.sqrt(0.6 * n))
    assert sigma == pytest.approx(0.2, abs=3 * 0.2 / np.sqrt(1.2 * n))


def test_gamma_shape_solves_its_equation() -> None:
    for shape in (0.05, 0.3, 1.0, 2.0, 7.5, 19.0):
        target = np.log(shape) - digamma(shape)
        assert _gamma_shape(target) == pytest.approx(shape, rel=1e-10)
    assert _gamma_shape(0.0) == _gamma_shape(-1.0) == _gamma_shape(1e-6) == MAX_SHAPE


def test_digamma_and_trigamma() -> None:
    from scipy.special import polygamma

    for x in (1e-3, 0.1, 0.9, 3.0, 9.99, 10.0, 55.0):
        ours = _digamma_and_trigamma(x)
        np.testing.assert_allclose(ours, [digamma(x), polygamma(1, x)], rtol=1e-13)


def test_status_says_why_a_gene_is_not_modelled() -> None:
    n = 40
    rng = np.random.default_rng(0)
    counts = np.zeros((n, 4))
    counts[:, 0] = rng.poisson(20, size=n)
    counts[0, 2] = 3  # a single count
    counts[::3, 3] = 1
    library = np.full(n, 1e6)
    library[1::2] = 3e6
    mixture = fit_mixture(sp.csr_array(counts), library, np.zeros(n, dtype=int), 1)
    status = [STATUSES[code] for code in mixture.status[:, 0]]
    assert status[0] == "modelled"
    assert status[1] == "no counts"
    assert status[2] == "fit failed"
    # One count per million or a third of one: the mean stays below log10(2.01), the published limit.
    assert status[3] == "mean too low"
    assert np.isnan(mixture.parameters[1:3]).all()
    assert (mixture.zero_probability()[1:3] == 0).all()


def test_probability_follows_the_published_rules() -> None:
    counts = random_counts(60, 20)
    library = counts.sum(axis=1).astype(float)
    clusters = np.arange(60) % 3 - 1  # a third of the cells has no cluster
    mixture = fit_mixture(counts, library, clusters, 2)
    probability = mixture.probability(counts, library, clusters)
    assert probability.dtype == np.float32
    observed = counts.toarray() > 0
    assert probability[observed].max() <= np.float32(0.4)
    assert (probability[clusters == -1] == 0).all()
    x = log10_cpm(counts.toarray().astype(float), library[:, None])
    for cell in np.flatnonzero(clusters >= 0):
        for gene in range(20):
            cluster = clusters[cell]
            if mixture.status[gene, cluster] != 0:
                assert probability[cell, gene] == 0
                continue
            parameters = mixture.parameters[gene, cluster]
            expected = gamma_normal_posterior(x[cell, gene], parameters)
            if expected > 0.5 and x[cell, gene] > parameters[3]:
                expected = 0.0
            if observed[cell, gene]:
                expected = min(expected, 0.4)
            assert probability[cell, gene] == pytest.approx(expected, abs=1e-6)


def test_same_bits_for_any_number_of_threads() -> None:
    counts = random_counts(100, 200)
    library = counts.sum(axis=1).astype(float)
    threads = numba.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            numba.set_num_threads(n)
            results.append(fit_mixture(counts, library, np.arange(100) % 2, 2).parameters)
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(results[0], results[1])


@settings(max_examples=40, deadline=None)
@given(
    n_cells=st.integers(1, 25),
    n_genes=st.integers(1, 6),
    largest=st.sampled_from([1, 3, 1000, 10**7]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_any_counts_give_probabilities(n_cells: int, n_genes: int, largest: int, zeros: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, largest + 1, size=(n_cells, n_genes)) * (rng.random((n_cells, n_genes)) > zeros)
    matrix = sp.csr_array(counts.astype(np.float64))
    library = np.maximum(matrix.sum(axis=1), 1.0)
    mixture = fit_mixture(matrix, library, np.zeros(n_cells, dtype=int), 1)
    probability = mixture.probability(matrix, library, np.zeros(n_cells, dtype=int))
    assert np.isfinite(probability).all()
    assert probability.min() >= 0
    assert probability.max() <= 1
    modelled = mixture.status[:, 0] == 0
    assert np.isfinite(mixture.parameters[modelled]).all()
    assert (mixture.parameters[modelled, 0, 4] > 0).all()


UNJITTED = """
import numpy as np, scipy.sparse as sp, sys
from scanpy_cnnimpute.clustering.density_peaks import adaptive_density_peaks
from scanpy_cnnimpute.dropout import fit_mixture
from scanpy_cnnimpute.imputation._inputs import select_inputs
counts = sp.csr_array(np.load(sys.argv[1]))
mixture = fit_mixture(counts, counts.sum(axis=1).astype(float), np.arange(counts.shape[0]) % 2, 2)
peaks = adaptive_density_peaks(counts.toarray()[:25, :3].astype(float))
inputs = select_inputs(counts.tocsc(), np.array([1, 2, 3]), np.arange(4, 15), 2)
np.savez(sys.argv[2], parameters=mixture.parameters, status=mixture.status, inputs=inputs, labels=peaks.labels,
         **peaks.tested)
"""


def test_kernels_do_the_same_without_compilation(tmp_path: object) -> None:
    np.save(f"{tmp_path}/counts.npy", random_counts(40, 15).toarray())
    outputs = []
    for disabled in ("0", "1"):
        output = f"{tmp_path}/{disabled}.npz"
        subprocess.run(
            [sys.executable, "-c", UNJITTED, f"{tmp_path}/counts.npy", output],
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
        outputs.append(np.load(output))
    for key in outputs[0]:
        # The compiler contracts products and sums.
        np.testing.assert_allclose(outputs[0][key], outputs[1][key], rtol=1e-9, err_msg=key)
