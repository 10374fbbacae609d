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
from helpers import DATA, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma

from scanpy_cnnimpute import datasets
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout import Clusters
from scanpy_cnnimpute.dropout.gamma_normal import (
    GammaNormalCells,
    GammaNormalModel,
    fit_mixture,
    gamma_normal_posterior,
    log10_cpm,
)
from scanpy_cnnimpute.dropout.gamma_normal.em import MAX_SHAPE, _digamma_and_trigamma, _gamma_shape
from scanpy_cnnimpute.dropout.gamma_normal.model import PARAMETERS, STATUSES, ZERO

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


def model_of(parameters: np.ndarray, status: np.ndarray) -> GammaNormalModel:
    """A model of fitted mixtures, without profiles."""
    return GammaNormalModel(
        **{name: parameters[..., k] for k, name in enumerate(PARAMETERS)},
        status=status,
        profiles=np.zeros(status.shape, dtype=np.float32),
        names=np.arange(status.shape[1]).astype(str),
    )


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
    library_size, clusters = cells["library_size"].to_numpy(float), cells["kmeans_cluster"].to_numpy() - 1
    parameters, status = fit_mixture(counts, library_size, clusters, 5)
    table = reference.set_index(["gene", "cluster"])
    checked = []
    for cluster in range(5):
        members = (cells["kmeans_cluster"] == cluster + 1).to_numpy()
        seen = np.diff(counts[members].tocsc().indptr)
        theirs = table.xs(cluster + 1, level="cluster").reindex(adata.var_names)
        valid = theirs["valid"].eq(True).to_numpy()
        many = seen >= 5
        # With two or more non-zeros both programs model the same genes; with one, neither does.
        np.testing.assert_array_equal((status[:, cluster] == 0)[many], valid[many])
        assert not (status[:, cluster] == 0)[seen <= 1].any()
        ours = parameters[many & valid, cluster]
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
    parameters, status = fit_mixture(counts, library, np.zeros(80, dtype=int), 1)
    x = log10_cpm(counts.toarray().astype(float), library[:, None])
    modelled = np.flatnonzero(status[:, 0] == 0)
    assert modelled.size > 20
    for gene in modelled:
        np.testing.assert_allclose(parameters[gene, 0], plain_em(x[:, gene]), rtol=1e-6)


def test_recovers_planted_components() -> None:
    # Counts at two well separated levels of CPM: the normal takes the upper, the gamma the zeros.
    rng = np.random.default_rng(0)
    n = 2000
    detected = rng.random(n) < 0.6
    x = np.where(detected, rng.normal(2.5, 0.2, size=n), ZERO)
    library = np.full(n, 1e6)
    counts = sp.csr_array(np.where(detected, 10**x - 1.01, 0.0)[:, None])
    parameters, _ = fit_mixture(counts, library, np.zeros(n, dtype=int), 1)
    rate, _, _, mu, sigma = parameters[0, 0]
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
    parameters, codes = fit_mixture(sp.csr_array(counts), library, np.zeros(n, dtype=int), 1)
    status = [STATUSES[code] for code in codes[:, 0]]
    assert status[0] == "modelled"
    assert status[1] == "no counts"
    assert status[2] == "fit failed"
    # One count per million or a third of one: the mean stays below log10(2.01), the published limit.
    assert status[3] == "mean too low"
    assert np.isnan(parameters[1:3]).all()
    model = model_of(parameters, codes)
    assert (model.zero_probability()[1:3] == 0).all()
    np.testing.assert_array_equal(model.modelled[:, 0], [True, False, False, False])


def test_probability_follows_the_published_rules() -> None:
    counts = random_counts(60, 20)
    library = counts.sum(axis=1).astype(float)
    clusters = np.arange(60) % 3 - 1  # a third of the cells has no cluster
    fit = GammaNormalModel.fit(Counts.of(counts), clusters=Clusters(codes=clusters, names=["a", "b"]))
    mixture = fit.model
    np.testing.assert_array_equal(fit.cells.library_size, library)
    probability = mixture.probability(counts, fit.cells)
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


def test_new_cells_find_their_cluster_by_profile() -> None:
    adata, new = simulate(80), simulate(41, seed=3)
    codes = adata.obs["type"].cat.codes.to_numpy(np.int64)
    model = GammaNormalModel.fit(Counts.of(adata.X), clusters=Clusters(codes=codes, names=["a", "b"])).model
    counts = sp.csr_array(new.X).toarray()
    counts[40] = 0
    cells = model.describe(sp.csr_array(counts))
    assert (cells.cluster[:40] == new.obs["type"].cat.codes.to_numpy()[:40]).mean() > 0.9
    assert cells.cluster[40] == -1
    np.testing.assert_array_equal(cells.library_size, counts.sum(axis=1))
    assert not model.probability(sp.csr_array(counts), cells)[40].any()
    # A profile has no depth.
    deep = model.describe(sp.csr_array(3 * counts))
    np.testing.assert_array_equal(deep.cluster, cells.cluster)
    found = model.clusters(cells)
    assert found.names == ["a", "b"]
    np.testing.assert_array_equal(found.codes, cells.cluster)


def test_named_clusters_are_taken_as_they_are() -> None:
    adata = simulate(40)
    codes = adata.obs["type"].cat.codes.to_numpy(np.int64)
    counts = sp.csr_array(adata.X)
    model = GammaNormalModel.fit(Counts.of(counts), clusters=Clusters(codes=codes, names=["a", "b"])).model
    # In another order, and some cells have none.
    named = Clusters(codes=np.append(1 - codes[:-1], -1), names=["b", "a"])
    np.testing.assert_array_equal(model.describe(counts, clusters=named).cluster, np.append(codes[:-1], -1))
    with pytest.raises(ValueError, match=r"clusters \['z'\] are unknown. Fitted: \['a', 'b'\]"):
        model.describe(counts, clusters=Clusters(codes=np.zeros(40, dtype=int), names=["z"]))


def test_genes_of_a_part_keep_their_probabilities() -> None:
    counts = random_counts(60, 20)
    clusters = Clusters(codes=np.arange(60) % 2, names=["a", "b"])
    fit = GammaNormalModel.fit(Counts.of(counts), clusters=clusters)
    whole = fit.model.probability(counts, fit.cells)
    cells, genes = np.array([7, 3, 59]), np.array([11, 2, 0])
    part = sp.csr_array(counts[cells][:, genes])
    found = fit.model.take(genes=genes).probability(part, fit.cells.take(cells=cells))
    np.testing.assert_array_equal(found, whole[np.ix_(cells, genes)])


def test_same_bits_for_any_number_of_threads() -> None:
    counts = random_counts(100, 200)
    library = counts.sum(axis=1).astype(float)
    threads = numba.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            numba.set_num_threads(n)
            results.append(fit_mixture(counts, library, np.arange(100) % 2, 2)[0])
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
    clusters = np.zeros(n_cells, dtype=int)
    mixture = model_of(*fit_mixture(matrix, library, clusters, 1))
    probability = mixture.probability(matrix, GammaNormalCells(library_size=library, cluster=clusters))
    assert np.isfinite(probability).all()
    assert probability.min() >= 0
    assert probability.max() <= 1
    modelled = mixture.status[:, 0] == 0
    assert np.isfinite(mixture.parameters[modelled]).all()
    assert (mixture.parameters[modelled, 0, 4] > 0).all()


UNJITTED = """
import numpy as np, scipy.sparse as sp, sys
from scanpy_cnnimpute import CNNImputer
from scanpy_cnnimpute.clustering.density_peaks import adaptive_density_peaks
from scanpy_cnnimpute.dropout.calibrated import CalibratedModel
from scanpy_cnnimpute.dropout.calibrated.splitting import split_molecules
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout.gamma_normal import fit_mixture
from scanpy_cnnimpute.imputation.paper.inputs import select_inputs
counts = sp.csr_array(np.load(sys.argv[1]))
n_cells, n_genes = counts.shape
parameters, status = fit_mixture(counts, counts.sum(axis=1).astype(float), np.arange(n_cells) % 2, 2)
peaks = adaptive_density_peaks(counts.toarray()[:25, :3].astype(float))
inputs = select_inputs(counts.tocsc(), np.array([1, 2, 3]), np.arange(4, 15), 2)
first, _ = split_molecules(counts * 300, np.arange(n_cells), np.arange(n_genes), 3)
fit = CalibratedModel.fit(Counts.of(counts), capture_efficiency=np.full(n_cells, 0.4))
indptr, genes, missed = fit.model.missed_molecules(counts, fit.cells, np.arange(1, n_genes), 0.01)
value, deviation = fit.model.posterior_mean(
    fit.cells, indptr, genes, missed, np.zeros(missed.size, np.float32), logarithmic=True, return_std=True)
series, _ = fit.model.posterior_mean(
    fit.cells, indptr, genes, np.float32(0.1) * missed, np.full(missed.size, 0.3, np.float32), logarithmic=True)
given = fit.model.missed_from(fit.cells, indptr, genes, np.full(missed.size, 0.3, np.float32))
imputed = {}
for estimate in ("posterior_mean", "conditional"):
    imputer = CNNImputer(estimate=estimate, n_steps=2, threshold=0, gate=False, verbose=False)
    imputed[estimate] = imputer.fit_transform(counts.astype(np.float64)).toarray()
np.savez(sys.argv[2], parameters=parameters, status=status, inputs=inputs, labels=peaks.labels, **peaks.tested,
         first=first.toarray(), indptr=indptr, genes=genes, probability_32=fit.model.probability(counts, fit.cells),
         shape_32=fit.model.shape, gain_32=fit.model.gain, scores_32=fit.cells.scores, missed_32=missed, value_32=value,
         deviation_32=deviation, series_32=series, given_32=given,
         posterior_mean_32=imputed["posterior_mean"], conditional_32=imputed["conditional"])
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
    assert outputs[0]["genes"].size > 100
    for key in outputs[0]:
        # The compiler contracts products and sums, which single precision shows.
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if key.endswith("_32") else {"rtol": 1e-9}
        np.testing.assert_allclose(outputs[0][key], outputs[1][key], **tolerance, err_msg=key)
