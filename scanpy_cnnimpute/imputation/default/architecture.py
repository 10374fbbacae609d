"""The network of the default preset, in Keras: any backend runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..backend import layer_dtype, needs_compilation

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

# Widths of the layers; wider ones gained less than 0.5 % on masked and recovered counts.
WIDTH = 16
CELL_WIDTH = 8
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


def build_network(
    sizes: tuple[int, int, int, int], n_top: int, loss: Callable[[Any, Any], Any], seed: int = 0
) -> keras.Model:
    """The network, compiled to predict and to be evaluated; it predicts 0 everywhere until it is trained.

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
    seed
        Of the initial weights.
    """
    from keras import Model, initializers, layers

    n_targets, n_channels, n_gene_features, n_cell_features = sizes
    dtype = layer_dtype()

    def glorot(offset: int) -> Any:
        return initializers.GlorotUniform(seed=seed + offset)

    blocks = layers.Input((n_targets * n_top, n_channels), dtype="float32")
    genes = layers.Input((n_targets, n_gene_features), dtype="float32")
    cells = layers.Input((n_cell_features,), dtype="float32")
    correlated = layers.Conv1D(
        WIDTH,
        n_top,
        strides=n_top,
        activation="relu",
        data_format="channels_last",
        kernel_initializer=glorot(0),
        dtype=dtype,
    )(blocks)
    of_cell = layers.Dense(CELL_WIDTH, activation="relu", kernel_initializer=glorot(1), dtype=dtype)(cells)
    # One dense layer of the three side by side, written as a sum so that the cell's part is computed once per cell.
    limit = (6 / (WIDTH + n_gene_features + CELL_WIDTH + WIDTH)) ** 0.5  # Glorot's, of the joint layer
    joint = [initializers.RandomUniform(-limit, limit, seed=seed + offset) for offset in (2, 3, 4)]
    parts = [
        layers.Dense(WIDTH, kernel_initializer=joint[0], dtype=dtype)(correlated),
        layers.Dense(WIDTH, use_bias=False, kernel_initializer=joint[1], dtype=dtype)(genes),
        layers.Reshape((1, WIDTH), dtype=dtype)(
            layers.Dense(WIDTH, use_bias=False, kernel_initializer=joint[2], dtype=dtype)(of_cell)
        ),
    ]
    joined = layers.Activation("relu", dtype=dtype)(layers.Add(dtype=dtype)(parts))
    # The output and the loss in full precision, also under a policy of mixed precision.
    outputs = layers.Dense(1, kernel_initializer="zeros", dtype="float32")(joined)
    outputs = layers.Reshape((n_targets,), dtype="float32")(outputs)
    model = Model([blocks, genes, cells], outputs)
    model.compile(loss=loss, jit_compile=needs_compilation())
    return model
