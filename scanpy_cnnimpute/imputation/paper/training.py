"""Train one network on one cluster and subset, and predict with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..backend import predict_batch
from .architecture import MASK, n_inputs

if TYPE_CHECKING:
    import keras
    from scipy.sparse import csr_array

    from ...presets import PaperSettings
    from .architecture import Network

PREDICTION_BATCH = 256  # cells; larger batches are no faster


def train(
    network: Network, inputs: csr_array, targets: np.ndarray, settings: PaperSettings, seed: np.random.SeedSequence
) -> dict[str, list[float]]:
    """Train from fresh weights until the validation loss stops falling.

    Parameters
    ----------
    network
        Reinitialised here.
    inputs
        ``(n_cells, n_input_genes)`` values, float32.
    targets
        ``(n_cells, n_targets)`` float32; `MASK` where there is nothing to learn.
    seed
        Decides weights, split, order of the batches and dropout.

    Returns
    -------
    ``loss`` and ``val_loss`` of each epoch: mean over batches, weighted by cells, as Keras reports them.
    """
    model = network.model
    rng = np.random.default_rng(seed)
    network.reinitialise(rng)
    cells = rng.permutation(inputs.shape[0])
    n_validation = min(math.ceil(settings.validation_fraction * cells.size), cells.size - 1)
    validation, training = cells[:n_validation], cells[n_validation:]
    # A validation set without any observed value cannot tell when to stop.
    monitored = "val_loss" if (targets[validation] != MASK).any() else "loss"

    history: dict[str, list[float]] = {"loss": [], "val_loss": []}
    best, waited = math.inf, 0
    for _ in range(settings.max_epochs):
        for name, step, order, size in (
            ("loss", model.train_on_batch, rng.permutation(training), settings.batch_size),
            ("val_loss", model.test_on_batch, validation, PREDICTION_BATCH),
        ):
            total = 0.0
            for start in range(0, order.size, size):
                batch = order[start : start + size]
                # Some versions of Keras average over the batches since the last reset, others reset themselves.
                model.reset_metrics()
                total += batch.size * float(step(*_batch(inputs, targets, batch, settings)))
            history[name].append(total / order.size)
        if not math.isfinite(history["loss"][-1]):
            break
        if history[monitored][-1] < best:
            best, waited = history[monitored][-1], 0
        else:
            waited += 1
            if waited >= settings.patience:
                break
    return history


def predict(model: keras.Model, inputs: csr_array, settings: PaperSettings) -> np.ndarray:
    """Predicted targets of every cell, ``(n_cells, n_targets)`` float32, in the units of the training values."""
    width = n_inputs(settings)
    blocks = []
    for start in range(0, inputs.shape[0], PREDICTION_BATCH):
        rows = np.arange(start, min(start + PREDICTION_BATCH, inputs.shape[0]))
        blocks.append(predict_batch(model, _dense(inputs, rows, width)))
    return np.concatenate(blocks)


def _batch(
    inputs: csr_array, targets: np.ndarray, cells: np.ndarray, settings: PaperSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Dense batch, the inputs padded with zeros and the targets with `MASK`."""
    y = np.full((cells.size, settings.n_targets), MASK, dtype=np.float32)
    y[:, : targets.shape[1]] = targets[cells]
    return _dense(inputs, cells, n_inputs(settings)), y


def _dense(inputs: csr_array, cells: np.ndarray, width: int) -> np.ndarray:
    x = np.zeros((cells.size, width, 1), dtype=np.float32)
    x[:, : inputs.shape[1], 0] = inputs[cells].toarray()
    return x
