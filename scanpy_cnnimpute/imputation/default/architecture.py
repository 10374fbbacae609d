"""The network of the default preset, in Keras: any backend runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from ..backend import needs_compilation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import keras

    from ...presets import BlockSettings

    Batch = tuple[list[np.ndarray], np.ndarray]

WIDTH = 16
CELL_WIDTH = 8
DRAWN_AHEAD = 4  # batches
CHECKS = 6  # of the validation loss, at most, besides the one before training
LARGEST_CORRECTION = 3.0  # of a log rate


def hidden_mse(y_true: Any, y_pred: Any) -> Any:
    """Weighted mean squared error; `y_true` holds values and weights, weight 0 where nothing is hidden."""
    from keras import ops

    weights = y_true[:, :, 1]
    return ops.sum(weights * ops.square(y_true[:, :, 0] - y_pred)) / ops.maximum(ops.sum(weights), 1e-6)


def held_out_deviance(y_true: Any, y_pred: Any) -> Any:
    """Mean Poisson deviance, but for a constant; `y_true` holds counts and their means before the correction."""
    from keras import ops

    correction = ops.clip(y_pred, -LARGEST_CORRECTION, LARGEST_CORRECTION)
    # The logarithm of the mean before the correction is a constant too.
    return 2 * ops.mean(y_true[:, :, 1] * ops.exp(correction) - y_true[:, :, 0] * correction)


def build_block_network(
    sizes: tuple[int, int, int, int], loss: Callable[[Any, Any], Any], settings: BlockSettings, seed: int
) -> keras.Model:
    """The network, compiled to predict and to be judged; it predicts 0 everywhere until it is trained.

    The genes most correlated with each target stand side by side, so that a Conv1D whose stride is its width reads
    one target's block at a time, with the same weights for all targets. What it finds meets the target's own features
    and those of the cell in two dense layers, again shared by all targets.

    Parameters
    ----------
    sizes
        Numbers of targets, of channels of the blocks, of features of a target and of a cell.
    loss
        :func:`hidden_mse` or :func:`held_out_deviance`.
    settings
        Of the preset.
    seed
        Of the initial weights.
    """
    from keras import Model, initializers, layers

    n_genes, n_channels, n_gene_features, n_cell_features = sizes

    def initial(offset: int) -> Any:
        return initializers.GlorotUniform(seed=seed + offset)

    blocks = layers.Input((n_genes * settings.n_top, n_channels))
    genes = layers.Input((n_genes, n_gene_features))
    cells = layers.Input((n_cell_features,))
    found = layers.Conv1D(
        WIDTH, settings.n_top, strides=settings.n_top, activation="relu", kernel_initializer=initial(0)
    )(blocks)
    of_cell = layers.Dense(CELL_WIDTH, activation="relu", kernel_initializer=initial(1))(cells)
    # One dense layer of the three side by side, as a sum: what is said of a cell is not repeated for each gene.
    limit = np.sqrt(6 / (WIDTH + n_gene_features + CELL_WIDTH + WIDTH))
    side_by_side = [initializers.RandomUniform(-limit, limit, seed=seed + offset) for offset in (2, 3, 4)]
    parts = [
        layers.Dense(WIDTH, kernel_initializer=side_by_side[0])(found),
        layers.Dense(WIDTH, use_bias=False, kernel_initializer=side_by_side[1])(genes),
        layers.Reshape((1, WIDTH))(layers.Dense(WIDTH, use_bias=False, kernel_initializer=side_by_side[2])(of_cell)),
    ]
    joined = layers.Activation("relu")(layers.Add()(parts))
    # The loss in full precision, also under a policy of mixed precision.
    outputs = layers.Dense(1, kernel_initializer="zeros", dtype="float32")(joined)
    outputs = layers.Reshape((n_genes,), dtype="float32")(outputs)
    model = Model([blocks, genes, cells], outputs)
    model.compile(loss=loss, jit_compile=needs_compilation())
    return model


def train_block_network(
    model: keras.Model, draw: Callable[[], Batch], validation: Batch, settings: BlockSettings
) -> dict[str, list[float]]:
    """Train on batches that are drawn, and keep the weights of the smallest validation loss.

    Parameters
    ----------
    model
        Not trained yet: predicting 0 is a candidate too.
    draw
        Gives a batch; called one after the other, but with TensorFlow by threads of its own.
    validation
        What the validation loss is of.
    settings
        Of the preset.

    Returns
    -------
    ``loss`` since the check before and ``val_loss``, at each check; the first is before any training.
    """
    from keras import Model, backend, callbacks, ops, optimizers

    from ..adam import FusedAdam

    n_threads, kept = numba.get_num_threads(), model.get_weights()
    history: dict[str, list[float]] = {"loss": [], "val_loss": []}
    first = draw()
    # Copied once, not at each check.
    checked = [ops.convert_to_tensor(part) for part in validation[0]], ops.convert_to_tensor(validation[1])

    def batches() -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        # No more than are used: nothing is left to be drawn when the training is over.
        for step in range(settings.n_steps):
            numba.set_num_threads(n_threads)
            inputs, answer = draw() if step else first
            yield tuple(inputs), answer

    def check(loss: float) -> None:
        nonlocal kept
        # Some versions of Keras average over the batches since the last reset, others reset themselves.
        model.reset_metrics()
        value = float(model.test_on_batch(*checked))
        # Not a number is no improvement.
        if value < min(history["val_loss"], default=np.inf):
            kept = model.get_weights()
        history["loss"].append(loss)
        history["val_loss"].append(value)

    check(float("nan"))
    n_checks = max(n for n in range(1, CHECKS + 1) if settings.n_steps % n == 0)
    n_between = settings.n_steps // n_checks
    # The same layers, many batches in a call: between two checks nothing returns to Python but to draw the next.
    trainer = Model(model.inputs, model.outputs)
    rate = optimizers.schedules.CosineDecay(settings.learning_rate, settings.n_steps)
    trainer.compile(
        FusedAdam(rate, weight_decay=1e-3, clipnorm=1.0),
        loss=model.loss,
        jit_compile=needs_compilation(),
        steps_per_execution=1 if backend.backend() == "torch" else n_between,  # torch takes no more
    )
    # TensorFlow traces a step that still creates variables twice, which takes longer than a hundred steps.
    trainer.optimizer.build(trainer.trainable_variables)
    trainer.fit(
        _tensorflow_dataset(batches, first) if backend.backend() == "tensorflow" else batches(),
        epochs=n_checks,
        steps_per_epoch=n_between,
        callbacks=[callbacks.LambdaCallback(on_epoch_end=lambda _, logs: check(logs["loss"]))],
        shuffle=False,
        verbose=0,
    )
    model.set_weights(kept)
    return history


def _tensorflow_dataset(batches: Callable[[], Iterator[Any]], first: Batch) -> Any:
    """Batches of the shapes of the first, drawn ahead.

    Of a generator Keras itself makes a dataset whose batches may be of any size, which is slower, and that tunes
    itself: the thread which does so may hold up the end for as long as half the training took.
    """
    from tensorflow import TensorSpec, data

    inputs, answer = first
    shapes = tuple(TensorSpec(part.shape, part.dtype) for part in inputs), TensorSpec(answer.shape, answer.dtype)
    options = data.Options()
    options.autotune.enabled = False
    dataset = data.Dataset.from_generator(batches, output_signature=shapes)
    return dataset.prefetch(DRAWN_AHEAD).with_options(options)
