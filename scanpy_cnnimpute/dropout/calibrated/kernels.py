"""Compiled loops of the calibrated model.

Where single precision is wanted, of what is not below 1e-9, ``log(1 + x)`` and ``exp(x) - 1`` stand for log1p and
expm1, which take longer.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

LARGEST_PROBABILITY = 1 - 1e-6
TAIL = 1e-5  # share of the probability that sums over the number of missed molecules may leave out
SINGLE_TERMS = 64
GROWTH = 0.04  # of a step, relative to where it is
MOST_STEPS = 1000
INVERSE = 1 / np.arange(1, SINGLE_TERMS + 1)
FEW = 8  # molecules whose factors are multiplied one by one
SMALLEST_PRODUCT = 1e-100


@njit(parallel=True, cache=True, fastmath={"contract"})
def allocate(indptr, indices, data, own, other, out):  # type: ignore[no-untyped-def]
    """Share every count among the factors: ``out[i, k] = sum_j x_ij own_ik other_jk / sum_q own_iq other_jq``.

    Four entries at a time: their sums do not wait for each other, and `out` is read and written once for the four.
    """
    n_factors = own.shape[1]
    for i in prange(own.shape[0]):
        for k in range(n_factors):
            out[i, k] = 0.0
        start, end = indptr[i], indptr[i + 1]
        rest = end - (end - start) % 4
        for entry in range(start, rest, 4):
            j0, j1, j2, j3 = indices[entry], indices[entry + 1], indices[entry + 2], indices[entry + 3]
            w0 = w1 = w2 = w3 = 0.0
            for k in range(n_factors):
                w0 += own[i, k] * other[j0, k]
                w1 += own[i, k] * other[j1, k]
                w2 += own[i, k] * other[j2, k]
                w3 += own[i, k] * other[j3, k]
            w0, w1, w2, w3 = data[entry] / w0, data[entry + 1] / w1, data[entry + 2] / w2, data[entry + 3] / w3
            for k in range(n_factors):
                out[i, k] += w0 * other[j0, k] + w1 * other[j1, k] + w2 * other[j2, k] + w3 * other[j3, k]
        for entry in range(rest, end):
            j, w = indices[entry], 0.0
            for k in range(n_factors):
                w += own[i, k] * other[j, k]
            w = data[entry] / w
            for k in range(n_factors):
                out[i, k] += w * other[j, k]
        for k in range(n_factors):
            out[i, k] *= own[i, k]


@njit(parallel=True, cache=True)
def shape_likelihood(train, test, expected, ratio, shapes, out):  # type: ignore[no-untyped-def]
    """Log likelihood, but for a constant, of the second molecules of each gene given its first, for each shape.

    Dense ``(n_genes, n_cells)`` blocks of integer counts and of expected first counts; `ratio` turns these into second
    ones, for each cell; `out` is ``(n_genes, n_shapes)``. Given a gamma distributed rate of shape r, the second count
    is negative binomial with shape ``r + first``. Factors are multiplied as long as they can be, since a logarithm, or
    a gamma function of a small count, takes longer than the rest.
    """
    n_genes, n_cells = train.shape
    for g in prange(n_genes):
        for s in range(shapes.size):
            r, total = shapes[s], 0.0
            per_shape, product = 1.0, 1.0  # the first to the power r
            for i in range(n_cells):
                mu = expected[g, i]
                more = mu * ratio[i]
                if more <= 0.0:
                    continue
                rest = r + mu + more
                nothing = (r + mu) / rest
                per_shape *= nothing
                if per_shape < SMALLEST_PRODUCT:
                    total += r * math.log(per_shape)
                    per_shape = 1.0
                first, second = train[g, i], test[g, i]
                if first > FEW:
                    total += first * math.log(nothing)
                else:
                    for _ in range(first):
                        product *= nothing
                if second > FEW:
                    total += second * math.log(more / rest)
                    total += math.lgamma(second + first + r) - math.lgamma(first + r)
                else:
                    for m in range(second):
                        product *= more / rest * (r + first + m)
                if product < SMALLEST_PRODUCT or product > 1.0 / SMALLEST_PRODUCT:
                    total += math.log(product)
                    product = 1.0
            out[g, s] = total + r * math.log(per_shape) + math.log(product)


@njit(parallel=True, cache=True)
def held_out_probability(train, expected, ratio, shape, out):  # type: ignore[no-untyped-def]
    """Probability that the second molecules hold what the first have none of.

    Dense ``(n_genes, n_cells)`` blocks, as in :func:`shape_likelihood`; `shape` is that of each gene. -1 where the
    first have some, or nothing is expected.
    """
    n_genes, n_cells = train.shape
    for g in prange(n_genes):
        r = shape[g]
        for i in range(n_cells):
            mu = expected[g, i]
            if train[g, i] == 0 and mu > 0.0:
                out[g, i] = -math.expm1(-r * math.log1p(ratio[i] * mu / (r + mu)))
            else:
                out[g, i] = -1.0


@njit(parallel=True, cache=True)
def missed_probability(indptr, indices, shape, efficiency, block):  # type: ignore[no-untyped-def]
    """Turn expected counts, dense ``(n_cells, n_genes)``, into probabilities that zeros hide something, in place.

    The CSR pattern says where something was counted, and nothing is hidden.
    """
    for i in prange(block.shape[0]):
        for entry in range(indptr[i], indptr[i + 1]):
            block[i, indices[entry]] = 0.0
        times = 1.0 / efficiency[i] - 1.0
        for g in range(block.shape[1]):
            mu = block[i, g]
            if mu > 0.0:
                # One division: (r + mu / c) / (r + mu) = 1 + mu (1 / c - 1) / (r + mu)
                r = shape[g]
                block[i, g] = 1.0 - math.exp(-r * math.log(1.0 + mu * times / (r + mu)))


@njit(cache=True)
def log_moments(mean, r, scale, logs):  # type: ignore[no-untyped-def]
    """Probability that N > 0, and mean and mean square of log1p(scale N) given that; N negative binomial of shape r.

    `logs` holds log1p(scale n) up to `SINGLE_TERMS`. Term by term at first; where the mean is large, in steps that grow
    with N, each standing for those that it passes.
    """
    step = mean / (r + mean)
    log_nothing = -r * math.log(1.0 + mean / r)
    mass = math.exp(log_nothing)
    present = 1.0 - mass
    seen, total, squares, n = 0.0, 0.0, 0.0, 0
    while n < SINGLE_TERMS and seen < (1.0 - TAIL) * present:
        mass *= (r + n) * INVERSE[n] * step
        n += 1
        value = logs[n]
        seen += mass
        total += mass * value
        squares += mass * value * value
    if seen < (1.0 - TAIL) * present:
        constant = log_nothing - math.lgamma(r)
        log_step = -math.log1p(r / mean)
        start = n + 0.5
        for _ in range(MOST_STEPS):
            width = max(1.0, math.floor(start * GROWTH))
            middle = start + 0.5 * width
            log_mass = math.lgamma(middle + r) - math.lgamma(middle + 1.0) + constant + middle * log_step
            mass = width * math.exp(log_mass)
            value = math.log1p(scale * middle)
            seen += mass
            total += mass * value
            squares += mass * value * value
            start += width
            if start > mean and mass < TAIL * seen:
                break
    # Too rare for a term to be left: one molecule.
    if seen <= 0.0:
        return present, logs[1], logs[1] * logs[1]
    return present, total / seen, squares / seen


@njit(parallel=True, cache=True)
def worth_of_zeros(  # type: ignore[no-untyped-def]
    indptr, genes, probability, correction, shape, efficiency, library_size, target_sum, logarithmic, worth, spread
):
    """What zeros are expected to be worth, and the standard deviation of log1p of that per `target_sum`.

    Entries in CSR order: those of cell i are ``indptr[i]:indptr[i + 1]``; `shape` is that of each gene, `efficiency`
    and `library_size` of each cell. See :meth:`CalibratedModel.posterior_mean`.
    """
    for i in prange(indptr.size - 1):
        c, unit = efficiency[i], target_sum / max(library_size[i], 1.0)
        logs = np.log1p(unit * c * np.arange(SINGLE_TERMS + 1))
        for entry in range(indptr[i], indptr[i + 1]):
            r = shape[genes[entry]]
            missed = r * (math.exp(-math.log(1.0 - min(probability[entry], LARGEST_PROBABILITY)) / r) - 1.0)
            # What the model says of a gene of any expression; probabilities from elsewhere may imply any number.
            missed = min(missed, r * (1.0 / c - 1.0)) * math.exp(correction[entry])
            present, first, second = log_moments(missed, r, unit * c, logs)
            mean = present * first
            worth[entry] = (math.exp(mean) - 1.0) / unit if logarithmic else missed * c
            spread[entry] = math.sqrt(max(present * second - mean * mean, 0.0))


@njit(parallel=True, cache=True)
def held_out_gain(train, test, expected, library_size, rates, ratio, shape, clusters, out, over_zero):  # type: ignore[no-untyped-def]
    """By how much the model lowers the error of second molecules at zeros, and its square, summed over cells.

    Dense ``(n_genes, n_cells)`` blocks: counts, and expected first counts by the model; those by the cluster's mean are
    its rate, ``(n_genes, n_clusters)``, times the cell's library size. `ratio` turns first into second expectations.
    `out` is ``(2, n_genes, n_clusters)``, of the Poisson deviance over that of the cluster's mean; `over_zero`
    ``(2, n_genes)``, of the squared error over that of zeros.
    """
    n_genes, n_cells = train.shape
    for g in prange(n_genes):
        out[:, g] = 0.0
        over_zero[:, g] = 0.0
        r = shape[g]
        for i in range(n_cells):
            c = clusters[i]
            if c < 0 or train[g, i] > 0:
                continue
            # What either expects after seeing nothing.
            expectation, mean, second = expected[g, i], library_size[i] * rates[g, c], test[g, i]
            model = ratio[i] * expectation * r / (r + expectation)
            value = model * (2.0 * second - model)
            over_zero[0, g] += value
            over_zero[1, g] += value * value
            if mean <= 0.0 or expectation <= 0.0:
                continue
            average = ratio[i] * mean * r / (r + mean)
            value = 2.0 * (average - model)
            if second > 0:
                value += 2.0 * second * math.log(model / average)
            out[0, g, c] += value
            out[1, g, c] += value * value
