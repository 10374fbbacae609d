"""Numba kernels of the gamma-normal mixture. One gene per parallel iteration, serial and in float64 inside a gene."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from ..._threads import parallel_kernel

ASYMPTOTIC = 10.0  # where the series of digamma and trigamma are exact to rounding
LOG_10 = math.log(10.0)
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)

# Numbers of the published program.
MAX_SHAPE = 20.0
TOLERANCE = 0.5
MAX_ITERATIONS = 101  # its counter is tested after the update: ``if (iter > 100) break``

FIT_OK = 0
FIT_NO_COUNTS = 1
FIT_FAILED = 2


@njit(cache=True)
def _digamma_and_trigamma(x: float) -> tuple[float, float]:
    """Both functions by recurrence up to x >= 10, and the asymptotic series there (error below 1e-15)."""
    digamma = 0.0
    trigamma = 0.0
    while x < ASYMPTOTIC:
        digamma -= 1.0 / x
        trigamma += 1.0 / (x * x)
        x += 1.0
    r = 1.0 / (x * x)
    digamma += math.log(x) - 0.5 / x
    digamma -= r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r * (1 / 132 - r * 691 / 32760)))))
    trigamma += 1.0 / x + 0.5 * r
    trigamma += r / x * (1 / 6 - r * (1 / 30 - r * (1 / 42 - r * (1 / 30 - r * (5 / 66 - r * 691 / 2730)))))
    return digamma, trigamma


@njit(cache=True)
def _gamma_shape(target: float) -> float:
    """Solve log(a) - digamma(a) = target by Newton's method, capped as published."""
    if not target > 0.0:
        return MAX_SHAPE
    start = (3.0 - target + math.sqrt((target - 3.0) ** 2 + 24.0 * target)) / 12.0 / target
    if start >= MAX_SHAPE:
        return MAX_SHAPE
    a = start
    for _ in range(50):
        digamma, trigamma = _digamma_and_trigamma(a)
        step = (math.log(a) - digamma - target) / (1.0 / a - trigamma)
        # The function is convex and decreasing: a step that would leave the positive axis is halved instead.
        new = a - step if step < a else 0.5 * a
        if abs(new - a) <= 1e-14 * a:
            return new
        a = new
    return a


@njit(cache=True)
def _expectation(x, log_x, n_zeros, zero, p, weights):  # type: ignore[no-untyped-def]
    """Fill the gamma weights of the non-zeros; return the log10-likelihood and the weight shared by all zeros."""
    rate, alpha, beta, mu, sigma = p[0], p[1], p[2], p[3], p[4]
    gamma_constant = math.log(rate) + alpha * math.log(beta) - math.lgamma(alpha)
    normal_constant = math.log1p(-rate) - math.log(sigma) - LOG_SQRT_2PI
    log_likelihood = 0.0
    for i in range(x.size):
        z = (x[i] - mu) / sigma
        gamma = gamma_constant + (alpha - 1.0) * log_x[i] - beta * x[i]
        normal = normal_constant - 0.5 * z * z
        difference = gamma - normal
        e = math.exp(-abs(difference))
        log_likelihood += max(gamma, normal) + math.log1p(e)
        weights[i] = 1.0 / (1.0 + e) if difference >= 0.0 else e / (1.0 + e)
    zero_weight = 0.0
    if n_zeros > 0:
        z = (zero - mu) / sigma
        gamma = gamma_constant + (alpha - 1.0) * math.log(zero) - beta * zero
        normal = normal_constant - 0.5 * z * z
        difference = gamma - normal
        e = math.exp(-abs(difference))
        log_likelihood += n_zeros * (max(gamma, normal) + math.log1p(e))
        zero_weight = 1.0 / (1.0 + e) if difference >= 0.0 else e / (1.0 + e)
    return log_likelihood / LOG_10, zero_weight


@njit(cache=True)
def _maximisation(x, log_x, n_zeros, zero, weights, zero_weight, p):  # type: ignore[no-untyped-def]
    """Update the five parameters in place; False if a component has lost all its mass."""
    gamma_mass = n_zeros * zero_weight
    gamma_sum = gamma_mass * zero
    gamma_log_sum = gamma_mass * math.log(zero)
    normal_mass = n_zeros * (1.0 - zero_weight)
    normal_sum = normal_mass * zero
    for i in range(x.size):
        w = weights[i]
        gamma_mass += w
        gamma_sum += w * x[i]
        gamma_log_sum += w * log_x[i]
        normal_mass += 1.0 - w
        normal_sum += (1.0 - w) * x[i]
    if not (gamma_mass > 0.0 and normal_mass > 0.0):
        return False
    mu = normal_sum / normal_mass
    square = n_zeros * (1.0 - zero_weight) * (zero - mu) ** 2
    for i in range(x.size):
        square += (1.0 - weights[i]) * (x[i] - mu) ** 2
    p[0] = gamma_mass / (n_zeros + x.size)
    p[1] = _gamma_shape(-gamma_log_sum / gamma_mass - math.log(gamma_mass / gamma_sum))
    p[2] = gamma_mass / gamma_sum * p[1]
    p[3] = mu
    p[4] = math.sqrt(square / normal_mass)
    # A normal without width, or a gamma without any, has no likelihood to climb.
    return 0.0 < p[0] < 1.0 and p[4] > 0.0 and 0.0 < p[2] < math.inf


@njit(cache=True)
def _fit_gene(x, n_zeros, zero, p):  # type: ignore[no-untyped-def]
    """EM of one gene from its non-zero values; returns the fit code."""
    n = x.size
    if n == 0:
        return FIT_NO_COUNTS
    log_x = np.empty(n)
    weights = np.empty(n)
    total = 0.0
    for i in range(n):
        log_x[i] = math.log(x[i])
        total += x[i]
    mean = total / n
    square = 0.0
    for i in range(n):
        square += (x[i] - mean) ** 2
    p[0] = n_zeros / (n_zeros + n) if n_zeros > 0 else 0.01
    p[1] = 0.5
    p[2] = 1.0
    p[3] = mean
    p[4] = math.sqrt(square / (n - 1)) if n > 1 else 0.0
    if not p[4] > 0.0:
        return FIT_FAILED

    _, zero_weight = _expectation(x, log_x, n_zeros, zero, p, weights)
    previous = 0.0
    for _ in range(MAX_ITERATIONS):
        if not _maximisation(x, log_x, n_zeros, zero, weights, zero_weight, p):
            return FIT_FAILED
        # One pass serves twice: the stopping rule needs the likelihood of the updated parameters,
        # the next iteration their weights.
        log_likelihood, zero_weight = _expectation(x, log_x, n_zeros, zero, p, weights)
        if not math.isfinite(log_likelihood):
            return FIT_FAILED
        if (log_likelihood - previous) ** 2 <= TOLERANCE:
            return FIT_OK
        previous = log_likelihood
    return FIT_OK


@parallel_kernel()
def fit_genes(x, indptr, n_cells, zero, parameters, codes):  # type: ignore[no-untyped-def]
    """Fit every gene of a CSC block; fills `parameters` (genes x 5) and `codes` in place."""
    for g in prange(indptr.size - 1):
        values = x[indptr[g] : indptr[g + 1]]
        code = _fit_gene(values, n_cells - values.size, zero, parameters[g])
        codes[g] = code
        if code != FIT_OK:
            parameters[g, :] = np.nan
