"""Molecules are split binomially, and each entry always alike."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats

from scanpy_cnnimpute.dropout.calibrated.splitting import MAX_SINGLE_DRAWS, TRAIN_SHARE, split_molecules


def split(counts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    matrix = sp.csr_array(counts)
    train, test = split_molecules(matrix, np.arange(counts.shape[0]), np.arange(counts.shape[1]), seed)
    return train.toarray(), test.toarray()


def test_share_is_the_documented_one() -> None:
    assert TRAIN_SHARE == 0.65


def test_both_parts_sum_to_the_counts() -> None:
    counts = sp.csr_array(np.random.default_rng(0).poisson(1.5, size=(40, 30)).astype(np.float32))
    train, test = split_molecules(counts, np.arange(40), np.arange(30), 0)
    for part in (train, test):
        np.testing.assert_array_equal(part.indptr, counts.indptr)
        np.testing.assert_array_equal(part.indices, counts.indices)
        assert part.dtype == np.int32
        assert part.data.min() >= 0
    np.testing.assert_array_equal((train + test).toarray(), counts.toarray())


@pytest.mark.parametrize("n", [1, 7, MAX_SINGLE_DRAWS, MAX_SINGLE_DRAWS + 1, 250_000])
def test_mean_and_variance_are_binomial(n: int) -> None:
    n_entries = 20_000
    first, _ = split(np.full((100, n_entries // 100), n))
    variance = n * 0.65 * 0.35
    # Four standard errors; the kurtosis of the binomial distribution enters that of the variance.
    assert first.mean() == pytest.approx(0.65 * n, abs=4 * np.sqrt(variance / n_entries))
    kurtosis = 2 + (1 - 6 * 0.65 * 0.35) / variance
    assert first.var() == pytest.approx(variance, rel=4 * np.sqrt(kurtosis / n_entries))
    assert first.min() >= 0
    assert first.max() <= n


def test_small_counts_have_the_binomial_distribution() -> None:
    first, _ = split(np.full((200, 300), 6))
    observed = np.bincount(first.ravel(), minlength=7)
    expected = first.size * scipy.stats.binom.pmf(np.arange(7), 6, 0.65)
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_large_counts_follow_the_normal_approximation() -> None:
    n = 1_500
    first, _ = split(np.full((100, 100), n))
    # Spread evenly over the steps of the whole numbers, so that the distribution is continuous.
    spread = first.ravel() + np.random.default_rng(0).uniform(-0.5, 0.5, size=first.size)
    scaled = (spread - 0.65 * n) / np.sqrt(n * 0.65 * 0.35)
    assert scipy.stats.kstest(scaled, "norm").pvalue > 1e-3


def test_entries_are_independent() -> None:
    counts = np.full((300, 300), 20)
    first, other = split(counts)[0], split(counts, seed=1)[0]
    upper = np.triu_indices(300, 1)
    pairs = {
        "seeds": (first, other),
        "neighbouring cells": (first[1:], first[:-1]),
        "neighbouring genes": (first[:, 1:], first[:, :-1]),
        "diagonals": (first[1:, :-1], first[:-1, 1:]),
        "cells and genes exchanged": (first[upper], first.T[upper]),
    }
    for name, (one, two) in pairs.items():
        # Four standard errors.
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 4 / np.sqrt(one.size), name


def test_any_part_in_any_order_is_split_alike() -> None:
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.poisson(rng.gamma(0.3, 500, size=(30, 40))))
    assert counts.max() > MAX_SINGLE_DRAWS
    cell_ids, gene_ids = np.arange(30), np.arange(40)
    whole, _ = split_molecules(counts, cell_ids, gene_ids, 5)
    cells, genes = rng.permutation(30)[:17], rng.permutation(40)[:23]
    part, rest = split_molecules(sp.csr_array(counts[cells][:, genes]), cell_ids[cells], gene_ids[genes], 5)
    np.testing.assert_array_equal(part.toarray(), whole.toarray()[np.ix_(cells, genes)])
    np.testing.assert_array_equal((part + rest).toarray(), counts.toarray()[np.ix_(cells, genes)])


def test_seeds_and_ids_decide() -> None:
    counts = np.full((20, 20), 9)
    first, _ = split(counts)
    np.testing.assert_array_equal(split(counts)[0], first)
    assert (split(counts, seed=1)[0] != first).any()
    moved, _ = split_molecules(sp.csr_array(counts), np.arange(20) + 1, np.arange(20), 0)
    np.testing.assert_array_equal(moved.toarray()[:-1], first[1:])


def test_same_bits_for_any_number_of_threads() -> None:
    counts = np.random.default_rng(0).poisson(4.0, size=(50, 60))
    threads = numba.get_num_threads()
    expected, _ = split(counts)
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(split(counts)[0], expected)
    finally:
        numba.set_num_threads(threads)


def test_fractions_are_rounded_and_huge_counts_kept() -> None:
    first, second = split(np.array([[2.6, 0.4, 7.0]]))
    np.testing.assert_array_equal(first + second, [[3, 0, 7]])
    huge = 2**40
    first, second = split(np.array([[huge, 3]]))
    assert first[0, 0] + second[0, 0] == huge
    assert first[0, 0] == pytest.approx(0.65 * huge, abs=5 * np.sqrt(huge * 0.65 * 0.35))
