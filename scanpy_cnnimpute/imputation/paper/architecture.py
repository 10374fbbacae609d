"""The published network, in Keras: any backend runs it."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._threads import check_fork, note_network
from ...presets import PaperSettings
from ..backend import layer_dtype, needs_compilation

if TYPE_CHECKING:
    import keras

COMPILING = Lock()  # two threads that ask for the same network get the same one

MASK = -1.0
"""Value of a target that takes no part in the loss."""

MIN_INPUTS = 10  # fewer leave nothing after two valid convolutions of width 3, each halved by pooling


def n_inputs(settings: PaperSettings) -> int:
    """Width of the input layer; smaller sets of input genes are padded with zeros."""
    return max(settings.n_targets * settings.n_top, MIN_INPUTS)


def masked_mse(y_true: Any, y_pred: Any) -> Any:
    """Mean squared error over the targets that are not masked."""
    from keras import ops

    observed = ops.cast(ops.not_equal(y_true, MASK), y_pred.dtype)
    squared = ops.square(y_pred - ops.cast(y_true, y_pred.dtype)) * observed
    return ops.sum(squared) / ops.maximum(ops.sum(observed), 1.0)


def build_network(settings: PaperSettings) -> keras.Model:
    """The compiled network of the paper's figure 1B; weights start at zero until :func:`reinitialise`.

    Conv1D(16, 3, relu), MaxPooling(2), BatchNormalization, the same again, Dropout(0.3), Dense(1024, relu), Dense.
    """
    from keras import Model, layers

    from ..optimizer import FusedAdam

    note_network()
    dtype = layer_dtype()

    # Names, since TensorFlow keeps a kernel for each that a variable has had, and Keras would number the layers.
    def block(x: Any, number: int) -> Any:
        # Zeros, since an initialiser without a seed draws one from Python's global generator.
        x = layers.Conv1D(
            16,
            3,
            activation="relu",
            data_format="channels_last",
            kernel_initializer="zeros",
            dtype=dtype,
            name=f"convolution_{number}",
        )(x)
        x = layers.MaxPooling1D(2, data_format="channels_last", dtype=dtype)(x)
        return layers.BatchNormalization(dtype=dtype, name=f"normalization_{number}")(x)

    inputs = layers.Input((n_inputs(settings), 1), dtype="float32")
    x = layers.Flatten(data_format="channels_last", dtype=dtype)(block(block(inputs, 1), 2))
    x = layers.Dropout(0.3, seed=0, dtype=dtype, name="dropout")(x)
    x = layers.Dense(1024, activation="relu", kernel_initializer="zeros", dtype=dtype, name="dense")(x)
    # The loss in full precision, also under a policy of mixed precision.
    outputs = layers.Dense(settings.n_targets, kernel_initializer="zeros", dtype="float32", name="output")(x)
    model = Model(inputs, outputs)
    model.compile(FusedAdam(settings.learning_rate), loss=masked_mse, jit_compile=needs_compilation())
    model.optimizer.build(model.trainable_variables)
    return model


def shared_network(settings: PaperSettings) -> Network:
    """The compiled network of these settings in this process, which it keeps: 132 MB with the published settings."""
    architecture = PaperSettings(
        n_targets=settings.n_targets, n_top=settings.n_top, learning_rate=settings.learning_rate
    )
    check_fork()
    with COMPILING:
        return _compiled(architecture, layer_dtype())


@lru_cache(maxsize=1)
def _compiled(settings: PaperSettings, dtype: str) -> Network:
    return Network(settings)


class Network:
    """One compiled network, trained anew for each subset: building and compiling costs more than training."""

    def __init__(self, settings: PaperSettings) -> None:
        from keras import ops

        self.lock = Lock()  # held while weights are set, trained and used
        self.model = build_network(settings)
        self._fresh = [ops.convert_to_numpy(variable) for variable in self._variables()]

    def _variables(self) -> list[Any]:
        rate = self.model.optimizer.learning_rate
        return [*self.model.variables, *(v for v in self.model.optimizer.variables if v is not rate)]

    def reinitialise(self, rng: np.random.Generator) -> None:
        """Forget everything: Glorot-uniform kernels from `rng`, the rest, optimizer and dropout seed as when built."""
        from keras import initializers, layers

        for variable, value in zip(self._variables(), self._fresh, strict=True):
            variable.assign(value)
        for layer in self.model.layers:
            if hasattr(layer, "kernel"):
                glorot = initializers.GlorotUniform(seed=int(rng.integers(2**31)))
                layer.kernel.assign(glorot(layer.kernel.shape, dtype=layer.kernel.dtype))
            elif isinstance(layer, layers.Dropout):
                state = layer.seed_generator.state
                state.assign(np.array([rng.integers(2**31), 0], dtype=state.dtype))
