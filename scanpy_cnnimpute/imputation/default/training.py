"""Train a default network on batches that are drawn while it learns."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

import numba
import numpy as np

from ..._progress import progress_bar
from ..backend import layer_dtype, needs_compilation, quiet_retracing
from .architecture import COMPILING, MAX_COMPILED, build_network, initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...presets import DefaultSettings

    Batch = tuple[list[np.ndarray], np.ndarray]

N_AHEAD = 4  # batches drawn ahead
MAX_CHECKS = 6  # of the validation loss, besides the one before training
# Of AdamW; tuned together with the learning rate.
WEIGHT_DECAY = 1e-3
CLIP_NORM = 1.0


def train_network(
    sizes: tuple[int, int, int, int],
    loss: Callable[[Any, Any], Any],
    draw: Callable[[], Batch],
    validation: Batch,
    settings: DefaultSettings,
    seed: int,
) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    """Train a network on batches that are drawn, and keep the weights of the smallest validation loss.

    Parameters
    ----------
    sizes, loss
        Of the network; see :func:`build_network`.
    draw
        Gives a batch; calls follow one another, but with TensorFlow in threads of its own.
    validation
        Batch of the validation loss.
    settings
        Of the preset.
    seed
        Of the initial weights.

    Returns
    -------
    The weights; and ``loss`` since the check before and ``val_loss``, at each check. The first check is before any
    training: predicting 0 is a candidate too.
    """
    first = draw()
    shapes = tuple((part.shape, str(part.dtype)) for part in (*first[0], first[1]))
    with COMPILING:
        trainer = _compiled(
            sizes, settings.n_top, loss, (settings.n_steps, settings.learning_rate), shapes, layer_dtype()
        )
    with trainer.lock, quiet_retracing():
        return trainer.train(first, draw, validation, seed)


class _Trainer:
    """A network compiled to be trained on batches of one shape, used in turn: compiling takes longer than training.

    It refers to the training data only while it trains.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        n_top: int,
        loss: Callable[[Any, Any], Any],
        schedule: tuple[int, float],
        shapes: tuple[tuple[tuple[int, ...], str], ...],
    ) -> None:
        from keras import Model, backend, ops, optimizers

        from ..optimizer import FusedAdam

        self.lock = Lock()
        self._n_steps, learning_rate = schedule
        self._n_checks = max(n for n in range(1, MAX_CHECKS + 1) if self._n_steps % n == 0)
        self._model = build_network(sizes, n_top, loss)
        # The same layers, compiled to run all batches between two checks in one call.
        self._trainer = Model(self._model.inputs, self._model.outputs)
        rate = optimizers.schedules.CosineDecay(learning_rate, self._n_steps)
        self._trainer.compile(
            FusedAdam(rate, weight_decay=WEIGHT_DECAY, clipnorm=CLIP_NORM),
            loss=loss,
            jit_compile=needs_compilation(),
            # torch runs one at a time
            steps_per_execution=1 if backend.backend() == "torch" else self._n_steps // self._n_checks,
        )
        # TensorFlow would trace a step that creates variables twice.
        self._trainer.optimizer.build(self._trainer.trainable_variables)
        self._fresh = [ops.convert_to_numpy(variable) for variable in self._trainer.optimizer.variables]
        self._draw: Callable[[], Batch] | None = None
        self._first: Batch | None = None
        self._n_threads = numba.get_num_threads()
        self._dataset = None
        if backend.backend() == "tensorflow":
            self._dataset = _tensorflow_dataset(WeakMethod(self._batches), shapes)

    def train(
        self, first: Batch, draw: Callable[[], Batch], validation: Batch, seed: int
    ) -> tuple[list[np.ndarray], dict[str, list[float]]]:
        """Train from new weights; see :func:`train_network`."""
        from keras import callbacks, ops

        model, trainer = self._model, self._trainer
        for variable, value in zip(trainer.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        initialise(model, seed)
        best, history = model.get_weights(), {"loss": [], "val_loss": []}  # type: ignore[var-annotated]
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
            bar.update(self._n_steps // self._n_checks if len(history["loss"]) > 1 else 0)

        self._draw, self._first, self._n_threads = draw, first, numba.get_num_threads()
        bar = progress_bar("Training the network", self._n_steps, unit="steps")
        try:
            check(float("nan"))
            trainer.fit(
                self._batches() if self._dataset is None else self._dataset,
                epochs=self._n_checks,
                steps_per_epoch=self._n_steps // self._n_checks,
                callbacks=[callbacks.LambdaCallback(on_epoch_end=lambda _, logs: check(logs["loss"]))],
                shuffle=False,
                verbose=0,
            )
        finally:
            bar.close()
            self._draw = self._first = None
        return best, history

    def _batches(self) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """No more batches than are used, so that none is being drawn when the training is over."""
        for _ in range(self._n_steps):
            if self._draw is None:
                return
            yield self._next()  # no local name: a suspended generator keeps its own alive

    def _next(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        draw, first = self._draw, self._first
        self._first = None
        numba.set_num_threads(self._n_threads)
        inputs, answer = draw() if first is None and draw is not None else first  # type: ignore[misc]
        return tuple(inputs), answer


@lru_cache(maxsize=MAX_COMPILED)
def _compiled(
    sizes: tuple[int, int, int, int],
    n_top: int,
    loss: Callable[[Any, Any], Any],
    schedule: tuple[int, float],
    shapes: tuple[tuple[tuple[int, ...], str], ...],
    dtype: str,
) -> _Trainer:
    return _Trainer(sizes, n_top, loss, schedule, shapes)


def _tensorflow_dataset(
    batches: WeakMethod[Callable[[], Iterator[Any]]], shapes: tuple[tuple[tuple[int, ...], str], ...]
) -> Any:
    """Batches of one shape, drawn ahead.

    The reference is weak: TensorFlow keeps the generator of a data set for the life of the process. Keras would make a
    data set of open shapes, which is slower, and that tunes itself in a thread which may hold up the end of the
    training.
    """
    from tensorflow import TensorSpec, data

    def generate() -> Iterator[Any]:
        return batches()()  # type: ignore[misc]  # the trainer is there while it trains

    *inputs, answer = (TensorSpec(shape, dtype) for shape, dtype in shapes)
    options = data.Options()
    options.autotune.enabled = False
    dataset = data.Dataset.from_generator(generate, output_signature=(tuple(inputs), answer))
    return dataset.prefetch(N_AHEAD).with_options(options)
