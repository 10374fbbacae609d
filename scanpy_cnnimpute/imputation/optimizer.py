"""Adam that updates each weight in one pass."""

from __future__ import annotations

from typing import Any

from keras import backend, ops, optimizers


class FusedAdam(optimizers.Adam):
    """Keras' Adam; with TensorFlow each variable is updated by one fused operation instead of ten.

    The published network has ten million weights: Keras' own update reads and writes all of them in each of its
    operations, which takes longer than the gradients. Same formula, Kingma and Ba (2015); with `weight_decay` it is
    AdamW.
    """

    def __init__(self, *args: Any, name: str = "fused_adam", **kwargs: Any) -> None:
        # Keras would number them; TensorFlow keeps a kernel for each name that a variable has had.
        super().__init__(*args, name=name, **kwargs)

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        """Update all variables, without a sum over replicas where there is one.

        TensorFlow registers the gradient of this sum, and with it the graph of the step, for the life of the process.
        """
        if backend.backend() != "tensorflow" or _has_replicas():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable.value, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its moments in place."""
        if backend.backend() != "tensorflow":
            super().update_step(gradient, variable, learning_rate)
            return
        from tensorflow import raw_ops

        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=ops.power(ops.cast(self.beta_1, variable.dtype), step),
            beta2_power=ops.power(ops.cast(self.beta_2, variable.dtype), step),
            lr=ops.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _has_replicas() -> bool:
    """Whether the user has chosen a strategy of distribution."""
    from tensorflow import distribute

    return distribute.has_strategy()
