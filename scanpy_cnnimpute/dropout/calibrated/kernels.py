"""Compiled loops of the calibrated model: one row or gene per parallel iteration, so threads never change a result.

Single-precision results use ``log(1 + x)`` and ``exp(x) - 1`` in double precision, which are faster than log1p and
expm1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from ..._threads import parallel_kernel

MAX_PROBABILITY = 1 - 1e-6  # of a given probability, whose number of missed molecules would be infinite at 1
TAIL = 1e-5  # share of the probability that sums over the number of missed molecules may leave out
N_SINGLE_TERMS = 64  # numbers of molecules that are summed one by one; beyond, terms stand for growing ranges
GROWTH = 0.04  # width of such a range, relative to where it is: errors of the moments stay below 0.2 %
MAX_RANGES = 1000  # bounds the loop; ranges that grow by 4 % pass 1e17 molecules by then
INVERSE = 1 / np.arange(1, N_SINGLE_TERMS + 1)
N_SERIES = 10  # terms of the series for few missed molecules
SERIES_RANGE = 0.3  # largest mean, and mean over shape, for it: 0.3^11 is below 2e-6
EXPM1_RANGE = 0.15  # 0.15^5 / 720 is below 2e-6
MAX_FACTORS = 8  # counts up to this are multiplied as factors; above, logarithms and gamma functions are faster
MAX_VARIATION = 0.01  # squared coefficient of variation below which the delta method errs by less than 1e-4
MIN_PRODUCT = 1e-100  # a running product below this, or above its inverse, is turned into a logarithm


@njit(cache=True, fastmath={"contract"})
def _expected_row(scores, loadings, out):  # type: ignore[no-untyped-def]
    """``out[g] = sum_k scores[k] loadings[k, g]``, four factors at a time; every sum has the same order."""
    n_factors = scores.size
    rest = n_factors - n_factors % 4
    for g in range(out.size):
        out[g] = 0
    for k in range(0, rest, 4):
        s0, s1, s2, s3 = scores[k], scores[k + 1], scores[k + 2], scores[k + 3]
        l0, l1, l2, l3 = loadings[k], loadings[k + 1], loadings[k + 2], loadings[k + 3]
        for g in range(out.size):
            out[g] += s0 * l0[g] + s1 * l1[g] + s2 * l2[g] + s3 * l3[g]
    for k in range(rest, n_factors):
        s0, l0 = scores[k], loadings[k]
        for g in range(out.size):
            out[g] += s0 * l0[g]


@parallel_kernel(fastmath={"contract"})
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


@parallel_kernel()
def shape_likelihood(train, test, expected, ratio, shapes, out):  # type: ignore[no-untyped-def]
    """Log likelihood, but for a constant, of the second molecules of each gene given its first, for each shape.

    Dense ``(n_genes, n_cells)`` blocks of integer counts and of expected first counts; `ratio` turns these into
    expected second counts, for each cell; `out` is ``(n_genes, n_shapes)``. Given a gamma distributed rate of shape r,
    the second count is negative binomial with shape ``r + first``. Factors are multiplied where possible: a logarithm,
    or a gamma function of a small count, takes longer.
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
                if per_shape < MIN_PRODUCT:
                    total += r * math.log(per_shape)
                    per_shape = 1.0
                first, second = train[g, i], test[g, i]
                if first > MAX_FACTORS:
                    total += first * math.log(nothing)
                else:
                    for _ in range(first):
                        product *= nothing
                if second > MAX_FACTORS:
                    total += second * math.log(more / rest)
                    total += math.lgamma(second + first + r) - math.lgamma(first + r)
                else:
                    for m in range(second):
                        product *= more / rest * (r + first + m)
                if product < MIN_PRODUCT or product > 1.0 / MIN_PRODUCT:
                    total += math.log(product)
                    product = 1.0
            out[g, s] = total + r * math.log(per_shape) + math.log(product)


@parallel_kernel()
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


@parallel_kernel()
def held_out_gain(  # type: ignore[no-untyped-def]
    first_indptr, first_indices, second_indptr, second_indices, second_data, scores, loadings, exposure, rates, ratio,
    shape, over_mean, over_zero,
):  # fmt: skip
    """Gain of the model on second counts where the first are zero, and its square, both summed over cells.

    CSR counts by gene; `scores` ``(n_factors, n_cells)``. ``over_mean[g]`` is the gain in Poisson deviance over the
    gene's mean rate times the cell's exposure, ``over_zero[g]`` the gain in squared error over leaving the zeros.
    `ratio` turns expected first counts into second ones; cells whose exposure is 0 take no part.
    """
    n_genes, n_cells = loadings.shape[0], scores.shape[1]
    for g in prange(n_genes):
        expected = np.empty(n_cells, dtype=np.float32)
        _expected_row(loadings[g], scores, expected)
        second = np.zeros(n_cells, dtype=np.int64)
        for entry in range(second_indptr[g], second_indptr[g + 1]):
            second[second_indices[entry]] = second_data[entry]
        for entry in range(first_indptr[g], first_indptr[g + 1]):
            expected[first_indices[entry]] = -1.0
        r, rate = shape[g], rates[g]
        mean_gain = mean_squares = zero_gain = zero_squares = 0.0
        for i in range(n_cells):
            mu, mean = np.float64(expected[i]), exposure[i] * rate
            if mu < 0.0 or exposure[i] <= 0.0:
                continue
            # What either predicts after a first count of zero.
            model = ratio[i] * mu * r / (r + mu)
            value = model * (2.0 * second[i] - model)
            zero_gain += value
            zero_squares += value * value
            if mean <= 0.0 or mu <= 0.0:
                continue
            average = ratio[i] * mean * r / (r + mean)
            value = 2.0 * (average - model)
            if second[i] > 0:
                value += 2.0 * second[i] * math.log(model / average)
            mean_gain += value
            mean_squares += value * value
        over_mean[g, 0], over_mean[g, 1] = mean_gain, mean_squares
        over_zero[g, 0], over_zero[g, 1] = zero_gain, zero_squares


@parallel_kernel()
def dropout_probability(indptr, indices, scores, loadings, shape, efficiency, out):  # type: ignore[no-untyped-def]
    """Probability that each zero hides a molecule, dense ``(n_cells, n_genes)``; 0 where the CSR pattern has a count.

    `loadings` is ``(n_factors, n_genes)``.
    """
    for i in prange(out.shape[0]):
        row = out[i]
        _expected_row(scores[i], loadings, row)
        for entry in range(indptr[i], indptr[i + 1]):
            row[indices[entry]] = 0.0
        times = 1.0 / np.float64(efficiency[i]) - 1.0
        for g in range(row.size):
            mu = np.float64(row[g])
            if mu > 0.0:
                # One division: (r + mu / c) / (r + mu) = 1 + mu (1 / c - 1) / (r + mu)
                r = shape[g]
                row[g] = 1.0 - math.exp(-r * math.log(1.0 + mu * times / (r + mu)))


@njit(cache=True)
def _missed_row(counted, position, scores, loadings, shape, times, bound, row):  # type: ignore[no-untyped-def]
    """Expected counts of one cell, negative where a zero is not to be imputed.

    A dropout probability above a threshold is a number of missed molecules above `bound`, so that comparing takes no
    logarithm: ``mu r t / (r + mu) > b`` is ``mu (r t - b) > b r``.
    """
    _expected_row(scores, loadings, row)
    for j in counted:
        if position[j] >= 0:
            row[position[j]] = -1.0
    for g in range(row.size):
        r, b = shape[g], bound[g]
        if not row[g] * (r * times - b) > b * r:
            row[g] = -1.0


@parallel_kernel()
def count_missed(indptr, indices, position, scores, loadings, shape, times, bound, sizes):  # type: ignore[no-untyped-def]
    """Number of zeros of each cell to impute: those whose expected number of missed molecules exceeds the bound.

    `loadings` ``(n_factors, n_wanted)``, float32 `shape` and `bound` are of the wanted genes; gene j of the CSR counts
    is ``position[j]`` of these, or none if negative. `times` is ``1 / c - 1`` for the share c of molecules counted.
    """
    for i in prange(sizes.size):
        row = np.empty(shape.size, dtype=np.float32)
        _missed_row(indices[indptr[i] : indptr[i + 1]], position, scores[i], loadings, shape, times[i], bound, row)
        n = 0
        for g in range(row.size):
            n += row[g] >= 0.0
        sizes[i] = n


@parallel_kernel()
def take_missed(  # type: ignore[no-untyped-def]
    indptr, indices, position, scores, loadings, shape, times, bound, wanted, starts, genes, missed
):
    """Genes of these zeros and their expected missed molecules, row by row from ``starts[i]``; see `count_missed`."""
    n_wanted = shape.size
    for i in prange(starts.size - 1):
        row = np.empty(n_wanted, dtype=np.float32)
        _missed_row(indices[indptr[i] : indptr[i + 1]], position, scores[i], loadings, shape, times[i], bound, row)
        # Written always and advanced if kept: which zeros are kept cannot be predicted, and a branch would cost more.
        own_genes, own_missed = np.empty(n_wanted, dtype=np.int32), np.empty(n_wanted, dtype=np.float32)
        n = 0
        for g in range(n_wanted):
            mu = row[g]
            own_genes[n] = wanted[g]
            own_missed[n] = mu * shape[g] * times[i] / (shape[g] + mu)
            n += mu >= 0.0
        genes[starts[i] : starts[i + 1]] = own_genes[:n]
        missed[starts[i] : starts[i + 1]] = own_missed[:n]


@parallel_kernel()
def missed_of_probability(indptr, genes, probability, shape, times, missed):  # type: ignore[no-untyped-def]
    """Expected missed molecules that given probabilities of CSR entries imply.

    At most what the model says of a gene of any expression: probabilities of the user's own may imply any number.
    """
    for i in prange(indptr.size - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            r = np.float64(shape[genes[entry]])
            p = min(np.float64(probability[entry]), MAX_PROBABILITY)
            missed[entry] = min(r * (math.exp(-math.log(1.0 - p) / r) - 1.0), r * times[i])


@njit(cache=True)
def log_moments(mean, r, scale, logs):  # type: ignore[no-untyped-def]
    """Probability that N > 0, and mean and mean square of log1p(scale N) given that; N negative binomial of shape r.

    `logs` holds log1p(scale n) up to `N_SINGLE_TERMS`. Small numbers are summed term by term, larger ones in ranges
    that grow with N.
    """
    step = mean / (r + mean)
    log_nothing = -r * math.log(1.0 + mean / r)
    mass = math.exp(log_nothing)
    present = 1.0 - mass
    seen, total, squares, n = 0.0, 0.0, 0.0, 0
    while n < N_SINGLE_TERMS and seen < (1.0 - TAIL) * present:
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
        for _ in range(MAX_RANGES):
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
    # So rare that the terms underflow: one molecule.
    if seen <= 0.0:
        return present, logs[1], logs[1] * logs[1]
    return present, total / seen, squares / seen


def series_coefficients(shape):  # type: ignore[no-untyped-def]
    """``prod_j (1 + j / r) / k!`` for each shape and k = 1, ..., `N_SERIES`; see :func:`value_missed`."""
    k = np.arange(1, N_SERIES + 1)
    return np.cumprod((1.0 + (k - 1) / shape[:, None]) / k, axis=1)


@njit(cache=True)
def _forward_differences(values):  # type: ignore[no-untyped-def]
    """Newton's forward differences of all orders at the first value."""
    differences = values.copy()
    for k in range(1, values.size):
        for n in range(values.size - 1, k - 1, -1):
            differences[n] -= differences[n - 1]
    return differences


@njit(cache=True)
def _series_mean(mean, coefficients, differences):  # type: ignore[no-untyped-def]
    """Mean of a function of few missed molecules from its forward differences; see `value_missed`."""
    total = 0.0
    for k in range(coefficients.size - 1, -1, -1):
        total = (total + coefficients[k] * differences[k + 1]) * mean
    return total


@njit(cache=True)
def _expm1(x):  # type: ignore[no-untyped-def]
    """``exp(x) - 1`` for x >= 0, exact to single precision."""
    if x < EXPM1_RANGE:
        return x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
    return math.exp(x) - 1.0


@parallel_kernel()
def value_missed(  # type: ignore[no-untyped-def]
    indptr, genes, missed, correction, shape, coefficients, efficiency, library_size, target_sum, logarithmic, values,
    deviation,
):  # fmt: skip
    """What zeros are worth, and the standard deviation of log1p of that per `target_sum`; see `posterior_mean`.

    CSR entries: those of cell i are ``indptr[i]:indptr[i + 1]``. `missed` molecules are multiplied by the exponential
    of `correction`. Empty `deviation` is not filled.

    Means of the logarithm over few missed molecules come from Newton's forward differences at 0: with factorial moments
    ``m^k prod_j (1 + j / r)``, ``E f(N) = sum_k (m^k / k!) prod_j (1 + j / r) (Delta^k f)(0)``, whose terms fall at
    least as ``(m max(1, 1 / r))^k``.
    """
    needs_moments = deviation.size > 0
    for i in prange(indptr.size - 1):
        c, unit = np.float64(efficiency[i]), target_sum / max(library_size[i], 1.0)
        logs = np.log1p(unit * c * np.arange(N_SINGLE_TERMS + 1))
        differences = _forward_differences(logs[: N_SERIES + 1])
        for entry in range(indptr[i], indptr[i + 1]):
            g, mean = genes[entry], np.float64(missed[entry])
            if correction[entry] != 0.0:
                mean *= math.exp(correction[entry])
            r, value = shape[g], 0.0
            few = mean < min(SERIES_RANGE, SERIES_RANGE * r)
            if needs_moments or (logarithmic and not few):
                present, first, second = log_moments(mean, r, unit * c, logs)
                value = present * first
                if needs_moments:
                    deviation[entry] = math.sqrt(max(present * second - value * value, 0.0))
            if logarithmic and few:
                # Also with deviations, which must not change the values.
                value = _series_mean(mean, coefficients[g], differences)
            values[entry] = _expm1(value) / unit if logarithmic else mean * c


@njit(cache=True)
def _log_mean(mean, r, scale, logs, differences):  # type: ignore[no-untyped-def]
    """Mean of log1p(scale N), N negative binomial; see `log_moments` for `logs`, `value_missed` for `differences`."""
    if mean < min(SERIES_RANGE, SERIES_RANGE * r):
        total, inverse = 0.0, 1.0 / r
        for k in range(N_SERIES, 0, -1):
            total = (total + differences[k]) * mean * (1.0 + (k - 1) * inverse) / k
        return total
    present, first, _ = _log_parts(mean, r, scale, logs)
    return present * first


@njit(cache=True)
def _log_parts(mean, r, scale, logs):  # type: ignore[no-untyped-def]
    """As :func:`log_moments`; by the delta method where N varies little, which the ranges of that would not resolve."""
    variation = 1.0 / mean + 1.0 / r  # squared coefficient of variation
    if variation > MAX_VARIATION:
        return log_moments(mean, r, scale, logs)
    slope = scale * mean / (1.0 + scale * mean)
    value = math.log1p(scale * mean) - 0.5 * slope * slope * variation
    return 1.0, value, value * value + slope * slope * variation


@parallel_kernel()
def denoise(  # type: ignore[no-untyped-def]
    indptr, indices, data, position, scores, loadings, shape, correction, own_depth, depth, target_sum, logarithmic,
    values, deviation,
):  # fmt: skip
    """Posterior mean at `depth` of every entry given its own count, or that of log1p per `target_sum`, turned back.

    CSR counts; `loadings` ``(n_factors, n_wanted)`` and `shape` are of the wanted genes; gene j of the counts is
    ``position[j]`` of these, or none if negative. `correction`, `values` and, unless empty, `deviation` have
    ``n_wanted`` entries of each cell. What is expected to be 0 stays as it was counted.
    """
    n_wanted = shape.size
    for i in prange(scores.shape[0]):
        row, own = np.empty(n_wanted, dtype=np.float32), np.zeros(n_wanted, dtype=np.float32)
        _expected_row(scores[i], loadings, row)
        for entry in range(indptr[i], indptr[i + 1]):
            g = position[indices[entry]]
            if g >= 0:
                own[g] = data[entry]
        scale, times = target_sum / depth[i], depth[i] / own_depth[i]
        logs = np.log1p(scale * np.arange(N_SINGLE_TERMS + 1))
        differences = _forward_differences(logs[: N_SERIES + 1])
        for g in range(n_wanted):
            place, mu, y = i * n_wanted + g, np.float64(row[g]), np.float64(own[g])
            if mu <= 0.0:
                values[place] = y * times
                if deviation.size > 0:
                    deviation[place] = 0.0
                continue
            r = shape[g] + y
            mean = r / (shape[g] + mu) * mu * math.exp(correction[place]) * times
            values[place] = math.expm1(_log_mean(mean, r, scale, logs, differences)) / scale if logarithmic else mean
            if deviation.size > 0:
                present, first, second = _log_parts(mean, r, scale, logs)
                deviation[place] = math.sqrt(max(present * second - (present * first) ** 2, 0.0))
