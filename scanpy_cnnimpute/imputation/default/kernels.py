"""Compiled loops of the default imputers: what the networks read, and which zeros they predict."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..._threads import parallel_kernel


@parallel_kernel()
def sum_rows(indptr, indices, rows, out):  # type: ignore[no-untyped-def]
    """``out[i] = sum of rows[j]`` over the stored entries (i, j) of a CSR pattern."""
    width = rows.shape[1]
    for i in prange(out.shape[0]):
        for t in range(width):
            out[i, t] = 0.0
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            for t in range(width):
                out[i, t] += rows[j, t]


@parallel_kernel()
def gather_blocks(channels, weighted, neighbours, correlations, cells, targets, out):  # type: ignore[no-untyped-def]
    """Put the channels of each target's correlated genes side by side.

    `channels` is ``(n_cells, n_genes, n_channels)``; row i of `out` is of ``cells[i]`` and its genes ``targets[i]``:
    ``(n_rows, n_targets * n_top, n_channels + 1)``. The last channel is channel `weighted` times the correlation.
    """
    n_top, n_channels = neighbours.shape[1], channels.shape[2]
    for i in prange(targets.shape[0]):
        cell = cells[i]
        for position in range(targets.shape[1]):
            g = targets[i, position]
            for t in range(n_top):
                j, place = neighbours[g, t], position * n_top + t
                for c in range(n_channels):
                    out[i, place, c] = channels[cell, j, c]
                out[i, place, n_channels] = channels[cell, j, weighted] * correlations[g, t]


@parallel_kernel()
def join_features(own, shared, scores, loadings, cells, targets, out):  # type: ignore[no-untyped-def]
    """Features of each target in each cell: its own, those of the gene, and its components one by one.

    ``(n_cells, n_genes, n_own)``, ``(n_genes, n_shared)``, ``(n_cells, k)`` and ``(n_genes, k)``; rows as in
    :func:`gather_blocks`.
    """
    n_own, n_shared, k = own.shape[2], shared.shape[1], scores.shape[1]
    for i in prange(targets.shape[0]):
        cell = cells[i]
        for position in range(targets.shape[1]):
            g = targets[i, position]
            for c in range(n_own):
                out[i, position, c] = own[cell, g, c]
            for c in range(n_shared):
                out[i, position, n_own + c] = shared[g, c]
            for c in range(k):
                out[i, position, n_own + n_shared + c] = scores[cell, c] * loadings[g, c]


@parallel_kernel()
def describe_counts(  # type: ignore[no-untyped-def]
    indptr, indices, data, rows, position, expected, level, shape, floor, lowest, highest, channels, own
):
    """Pearson residuals, levels and log counts of the genes that are read, in some rows of CSR counts.

    ``(n_rows, n_genes)``: `expected` and its logarithm `level`; column j of the counts is gene ``position[j]`` of
    these, or none if negative. `channels`: residual, level; `own`: level, whether the count is zero, log1p(count),
    residual.
    """
    for i in prange(rows.size):
        for g in range(shape.size):
            mean = expected[i, g]
            spread = np.sqrt(mean + mean * mean / shape[g] + floor)
            residual = min(max(-mean / spread, lowest), highest)
            channels[i, g, 0], channels[i, g, 1] = residual, level[i, g]
            own[i, g, 0], own[i, g, 1], own[i, g, 2], own[i, g, 3] = level[i, g], 1, 0, residual
        for entry in range(indptr[rows[i]], indptr[rows[i] + 1]):
            g = position[indices[entry]]
            count = np.float32(data[entry])
            if g < 0 or count == 0:
                continue
            mean = expected[i, g]
            spread = np.sqrt(mean + mean * mean / shape[g] + floor)
            residual = min(max((count - mean) / spread, lowest), highest)
            channels[i, g, 0] = residual
            own[i, g, 1], own[i, g, 2], own[i, g, 3] = 0, np.log1p(count), residual


@parallel_kernel()
def mark_missing(indptr, indices, probability, usable, threshold, missing, sizes):  # type: ignore[no-untyped-def]
    """Zeros of usable genes whose probability exceeds the threshold, dense ``(n_rows, n_genes)``, and their numbers."""
    for i in prange(missing.shape[0]):
        for g in range(missing.shape[1]):
            missing[i, g] = usable[g] and probability[i, g] > threshold
        for entry in range(indptr[i], indptr[i + 1]):
            missing[i, indices[entry]] = False
        n = 0
        for g in range(missing.shape[1]):
            n += missing[i, g]
        sizes[i] = n


@parallel_kernel()
def take_missing(missing, indptr, probability, genes, probabilities):  # type: ignore[no-untyped-def]
    """Genes and probabilities of the marked entries, row by row; CSR with this `indptr`."""
    for i in prange(missing.shape[0]):
        entry = indptr[i]
        for g in range(missing.shape[1]):
            if missing[i, g]:
                genes[entry] = g
                probabilities[entry] = probability[i, g]
                entry += 1


@parallel_kernel()
def count_targets(indptr, genes, position, sizes):  # type: ignore[no-untyped-def]
    """Number of entries of each CSR row whose gene has a position."""
    for i in prange(sizes.size):
        n = 0
        for entry in range(indptr[i], indptr[i + 1]):
            n += position[genes[entry]] >= 0
        sizes[i] = n


@parallel_kernel()
def arrange_targets(indptr, genes, position, first_row, cells, targets):  # type: ignore[no-untyped-def]
    """Put the positions of these entries into rows as wide as `targets`, those of cell i from ``first_row[i]`` on.

    The last row of a cell is filled up with 0; `cells` says which cell a row is of.
    """
    width = targets.shape[1]
    for i in prange(indptr.size - 1):
        n = 0
        for entry in range(indptr[i], indptr[i + 1]):
            target = position[genes[entry]]
            if target >= 0:
                targets[first_row[i] + n // width, n % width] = target
                n += 1
        last = -(-n // width)
        for row in range(first_row[i], first_row[i] + last):
            cells[row] = i
        for rest in range(n, last * width):
            targets[first_row[i] + rest // width, rest % width] = 0


@parallel_kernel()
def collect_predictions(indptr, genes, position, first_row, predicted, out):  # type: ignore[no-untyped-def]
    """Bring predictions in rows as in :func:`arrange_targets` back to the entries; `out` keeps the others."""
    width = predicted.shape[1]
    for i in prange(indptr.size - 1):
        n = 0
        for entry in range(indptr[i], indptr[i + 1]):
            if position[genes[entry]] >= 0:
                out[entry] = predicted[first_row[i] + n // width, n % width]
                n += 1
