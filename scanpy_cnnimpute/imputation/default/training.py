"""Train a default network on batches that are drawn while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from ..backend import needs_compilation, quiet_retracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import keras

    from ...presets import DefaultSettings

    Batch = tuple[list[np.ndarray], np.ndarray]

N_AHEAD = 4  # batches drawn ahead
MAX_CHECKS = 6  # of the validation loss, besides the one before training
# Of AdamW; tuned together with the learning rate.
WEIGHT_DECAY = 1e-3
CLIP_NORM = 1.0


def train_network(
    model: keras.Model, draw: Callable[[], Batch], validation: Batch, settings: DefaultSettings
) -> dict[str, list[float]]:
    """Train on batches that are drawn, and keep the weights of the smallest validation loss.

    Parameters
    ----------
    model
        Not trained yet: predicting 0 is a candidate too.
    draw
        Gives a batch; calls follow one another, but with TensorFlow in threads of its own.
    validation
        Batch of the validation loss.
    settings
        Of the preset.

    Returns
    -------
    ``loss`` since the check before and ``val_loss``, at each check; the first check is before any training.
    """
    from keras import Model, backend, callbacks, ops, optimizers

    from ..optimizer import FusedAdam

    best = model.get_weights()
    history: dict[str, list[float]] = {"loss": [], "val_loss": []}
    # Copied to the device once, not at each check.
    inputs, answer = [ops.convert_to_tensor(part) for part in validation[0]], ops.convert_to_tensor(validation[1])

    def check(loss: float) -> None:
        nonlocal best
        # Some versions of Keras average over the batches since the last reset, others reset themselves.
        model.reset_metrics()
        value = float(model.test_on_batch(inputs, answer))
        # Not a number is no improvement.
        if value < min(history["val_loss"], default=np.inf):
            best = model.get_weights()
        history["loss"].append(loss)
        history["val_loss"].append(value)

    n_checks = max(n for n in range(1, MAX_CHECKS + 1) if settings.n_steps % n == 0)
    n_between = settings.n_steps // n_checks
    # The same layers, compiled to run all batches between two checks in one call.
    trainer = Model(model.inputs, model.outputs)
    rate = optimizers.schedules.CosineDecay(settings.learning_rate, settings.n_steps)
    trainer.compile(
        FusedAdam(rate, weight_decay=WEIGHT_DECAY, clipnorm=CLIP_NORM),
        loss=model.loss,
        jit_compile=needs_compilation(),
        steps_per_execution=1 if backend.backend() == "torch" else n_between,  # torch runs one at a time
    )
    # TensorFlow would trace a step that creates variables twice.
    trainer.optimizer.build(trainer.trainable_variables)
    source = _BatchSource(draw, settings.n_steps)
    try:
        with quiet_retracing():
            check(float("nan"))
            trainer.fit(
                source.tensorflow_dataset() if backend.backend() == "tensorflow" else source.batches(),
                epochs=n_checks,
                steps_per_epoch=n_between,
                callbacks=[callbacks.LambdaCallback(on_epoch_end=lambda _, logs: check(logs["loss"]))],
                shuffle=False,
                verbose=0,
            )
    finally:
        source.close()
    model.set_weights(best)
    return history


class _BatchSource:
    """Draws a fixed number of batches, and lets go of the data when it is closed.

    TensorFlow keeps the generator of a data set for the life of the process: what the generator refers to must not hold
    the training data.
    """

    def __init__(self, draw: Callable[[], Batch], n_batches: int) -> None:
        self._draw: Callable[[], Batch] | None = draw
        self._first: Batch | None = draw()
        self._n_batches, self._n_threads = n_batches, numba.get_num_threads()

    def close(self) -> None:
        """Forget the training data."""
        self._draw = self._first = None

    def batches(self) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """No more batches than are used, so that none is being drawn when the training is over."""
        for _ in range(self._n_batches):
            if self._draw is None:
                return
            yield self._next()  # no local name: a suspended generator keeps its own alive

    def _next(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        draw, first = self._draw, self._first
        self._first = None
        numba.set_num_threads(self._n_threads)
        inputs, answer = draw() if first is None and draw is not None else first  # type: ignore[misc]
        return tuple(inputs), answer

    def tensorflow_dataset(self) -> Any:
        """Batches of one shape, drawn ahead.

        Keras would make a data set of open shapes, which is slower, and that tunes itself in a thread which may hold up
        the end of the training.
        """
        from tensorflow import TensorSpec, data

        assert self._first is not None  # noqa: S101 - nothing is drawn yet
        inputs, answer = self._first
        shapes = tuple(TensorSpec(part.shape, part.dtype) for part in inputs), TensorSpec(answer.shape, answer.dtype)
        options = data.Options()
        options.autotune.enabled = False
        return (
            data.Dataset.from_generator(self.batches, output_signature=shapes).prefetch(N_AHEAD).with_options(options)
        )
