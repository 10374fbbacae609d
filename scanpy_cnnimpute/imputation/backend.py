"""How Keras runs the networks, whatever the user has configured."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .._threads import check_fork, load_keras

if TYPE_CHECKING:
    from collections.abc import Iterator

    import keras


def needs_compilation() -> bool:
    """Whether XLA compiles the training steps (Keras' ``jit_compile``).

    JAX would run them operation by operation otherwise. TensorFlow has its own graph, which XLA takes longer to compile
    than the networks train, and again for each batch size; torch runs operations one by one.
    """
    return load_keras().backend.backend() == "jax"


def layer_dtype() -> str:
    """Precision of the layers: mixed if the user's dtype policy is, otherwise single, whatever ``floatx`` says."""
    policy = load_keras().config.dtype_policy().name
    return policy if policy.startswith("mixed_") else "float32"


def check_backend() -> None:
    """Refuse processes in which networks cannot run.

    Raises
    ------
    RuntimeError
        If another package has switched TensorFlow's eager execution off in this process, which Keras 3 needs, or if
        the process was forked from one that has run networks.
    """
    check_fork()
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not hasattr(tensorflow, "executing_eagerly") or tensorflow.executing_eagerly():
        return
    if load_keras().backend.backend() == "tensorflow":
        msg = (
            "TensorFlow runs in graph mode in this process: another package has called disable_eager_execution(), as "
            "DCA does. Run the imputation in a process of its own, or set the environment variable KERAS_BACKEND to "
            "'jax' or 'torch' before Python starts."
        )
        raise RuntimeError(msg)


def set_weights(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Give a network its weights.

    Raises
    ------
    ValueError
        If they are not those of this architecture.
    """
    shapes = [weight.shape for weight in weights], [tuple(weight.shape) for weight in model.weights]
    if shapes[0] != shapes[1]:
        msg = f"The stored weights have shapes {shapes[0]}, the network has {shapes[1]}: the stored imputer is damaged."
        raise ValueError(msg)
    model.set_weights(weights)


def predict_batch(model: keras.Model, inputs: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Outputs of a network for one batch: an array for a network with one input, else a list."""
    with quiet_retracing():
        return np.asarray(model.predict_on_batch(inputs))


class _NoRetracing(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "retracing" not in record.getMessage()


@contextmanager
def quiet_retracing() -> Iterator[None]:
    """Drop TensorFlow's warnings of new input shapes: batches of a few shapes are intended here."""
    logger, no_retracing = logging.getLogger("tensorflow"), _NoRetracing()
    logger.addFilter(no_retracing)
    try:
        yield
    finally:
        logger.removeFilter(no_retracing)
