"""Missing value recovery for single-cell RNA-seq with convolutional networks, in Scanpy's manners."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, get, metrics, pl, pp, tl
    from ._estimate import estimate
    from ._report import report
    from .estimator import CNNImputer

    __version__: str

__all__ = ["CNNImputer", "datasets", "estimate", "get", "metrics", "pl", "pp", "report", "tl"]

_MODULES = {"CNNImputer": ".estimator", "estimate": "._estimate", "report": "._report"}
"""Where names that are no modules come from."""


def __getattr__(name: str) -> Any:
    """Import what is used: anndata alone takes seconds, in which the command line could not be interrupted."""
    if name == "__version__":
        from importlib.metadata import version

        return version("scanpy-cnnimpute")
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module = import_module(_MODULES.get(name, f".{name}"), __name__)
    globals()[name] = value = getattr(module, name) if name in _MODULES else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
