"""How Keras runs the networks."""

from __future__ import annotations


def needs_compilation() -> bool:
    """Whether XLA compiles the steps, as Keras' ``jit_compile``: JAX runs them operation by operation otherwise.

    TensorFlow has a graph of its own, which XLA compiles longer than the networks train, and anew for each size of a
    last batch; torch runs its operations one by one.
    """
    from keras import backend

    return backend.backend() == "jax"
