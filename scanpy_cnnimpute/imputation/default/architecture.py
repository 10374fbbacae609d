"""The network of the default preset, in Keras: any backend runs it."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._threads import check_fork, note_network
from ..backend import layer_dtype, needs_compilation, predict_batch, set_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

# Widths of the layers; wider ones gained less than 0.5 % on masked and recovered counts.
WIDTH = 16
CELL_WIDTH = 8
COMPILING = Lock()  # two threads that ask for the same network get the same one
MAX_COMPILED = 4  # compiled networks that are kept, and as many to train: with TensorFlow about 15 MB together
MAX_CORRECTION = 3.0  # of a log rate: predictions beyond a factor of 20 are extrapolations
MIN_WEIGHT = 1e-6  # guards a batch without hidden entries


def hidden_mse(y_true: Any, y_pred: Any) -> Any:
    """Weighted mean squared error; `y_true` holds values and weights, weight 0 where nothing is hidden."""
    from keras import ops

    weights = y_true[:, :, 1]
    return ops.sum(weights * ops.square(y_true[:, :, 0] - y_pred)) / ops.maximum(ops.sum(weights), MIN_WEIGHT)


def held_out_deviance(y_true: Any, y_pred: Any) -> Any:
    """Mean Poisson deviance, but for a constant; `y_true` holds counts and their means before the correction."""
    from keras import ops

    correction = ops.clip(y_pred, -MAX_CORRECTION, MAX_CORRECTION)
    # The logarithm of the mean before the correction is a constant too.
    return 2 * ops.mean(y_true[:, :, 1] * ops.exp(correction) - y_true[:, :, 0] * correction)


def build_network(sizes: tuple[int, int, int, int], n_top: int, loss: Callable[[Any, Any], Any]) -> keras.Model:
    """The network, compiled to predict and to be evaluated; :func:`initialise` gives it weights.

    The genes most correlated with each target stand side by side, so that a Conv1D whose stride is its width reads
    one target's block at a time, with the same weights for all targets. Its outputs, the target's own features
    and those of the cell meet in two dense layers, again shared by all targets.

    Parameters
    ----------
    sizes
        Numbers of targets, of channels of the blocks, of features of a target and of a cell.
    n_top
        Correlated genes of each target.
    loss
        :func:`hidden_mse` or :func:`held_out_deviance`.
    """
    from keras import Model, layers

    note_network()
    n_targets, n_channels, n_gene_features, n_cell_features = sizes
    # Zeros, since an initialiser without a seed draws one from Python's global generator.
    options = {"kernel_initializer": "zeros", "dtype": layer_dtype()}
    blocks = layers.Input((n_targets * n_top, n_channels), dtype="float32")
    genes = layers.Input((n_targets, n_gene_features), dtype="float32")
    cells = layers.Input((n_cell_features,), dtype="float32")
    correlated = layers.Conv1D(
        WIDTH, n_top, strides=n_top, activation="relu", data_format="channels_last", name="correlated", **options
    )(blocks)
    of_cell = layers.Dense(CELL_WIDTH, activation="relu", name="cell", **options)(cells)
    # One dense layer of the three side by side, written as a sum so that the cell's part is computed once per cell.
    parts = [
        layers.Dense(WIDTH, name="joint_correlated", **options)(correlated),
        layers.Dense(WIDTH, use_bias=False, name="joint_gene", **options)(genes),
        layers.Reshape((1, WIDTH), dtype=layer_dtype())(
            layers.Dense(WIDTH, use_bias=False, name="joint_cell", **options)(of_cell)
        ),
    ]
    joined = layers.Activation("relu", dtype=layer_dtype())(layers.Add(dtype=layer_dtype())(parts))
    # The output and the loss in full precision, also under a policy of mixed precision.
    outputs = layers.Dense(1, kernel_initializer="zeros", dtype="float32", name="output")(joined)
    outputs = layers.Reshape((n_targets,), dtype="float32")(outputs)
    model = Model([blocks, genes, cells], outputs)
    model.compile(optimizer=None, loss=loss, jit_compile=needs_compilation())
    return model


def initialise(model: keras.Model, seed: int) -> None:
    """Give the network its weights before training: Glorot-uniform kernels, and an output of 0 everywhere."""
    from keras import initializers

    for variable in model.weights:
        variable.assign(np.zeros(variable.shape, dtype=np.float32))
    for offset, name in enumerate(("correlated", "cell")):
        kernel = model.get_layer(name).kernel
        kernel.assign(initializers.GlorotUniform(seed=seed + offset)(kernel.shape, dtype=kernel.dtype))
    joint = [model.get_layer(name).kernel for name in ("joint_correlated", "joint_gene", "joint_cell")]
    limit = (6 / (sum(kernel.shape[0] for kernel in joint) + WIDTH)) ** 0.5  # Glorot's, of the three as one layer
    for offset, kernel in enumerate(joint, start=2):
        kernel.assign(initializers.RandomUniform(-limit, limit, seed=seed + offset)(kernel.shape, dtype=kernel.dtype))


class SharedNetwork:
    """A compiled network that imputers use in turn, each with its own weights: compiling takes longer than use."""

    def __init__(self, sizes: tuple[int, int, int, int], n_top: int, loss: Callable[[Any, Any], Any]) -> None:
        self._model = build_network(sizes, n_top, loss)
        self._lock = Lock()
        self._weights: list[np.ndarray] | None = None

    def predict(self, weights: list[np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
        """Outputs for one batch with these weights."""
        with self._lock:
            if weights is not self._weights:
                set_weights(self._model, weights)
                self._weights = weights
            return predict_batch(self._model, inputs)


def shared_network(sizes: tuple[int, int, int, int], n_top: int, loss: Callable[[Any, Any], Any]) -> SharedNetwork:
    """The compiled network of this architecture in this process, under the present dtype policy."""
    check_fork()
    with COMPILING:
        return _compiled(sizes, n_top, loss, layer_dtype())


@lru_cache(maxsize=MAX_COMPILED)
def _compiled(
    sizes: tuple[int, int, int, int],
    n_top: int,
    loss: Callable[[Any, Any], Any],
    dtype: str,
) -> SharedNetwork:
    return SharedNetwork(sizes, n_top, loss)
