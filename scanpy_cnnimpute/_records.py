"""Dataclasses made of arrays: each field declares its dtype and its axes once, for slicing, storing and checking."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class ArraySpec:
    """What a field holds: its dtype and the names of its axes.

    `is_list`: a list of arrays of any shape. `is_column`: of use to the user, so that an AnnData shows it in `.obs`.
    `is_optional`: the field may be None, and is then not stored.
    """

    dtype: str
    axes: tuple[str, ...] = ()
    is_list: bool = False
    is_column: bool = False
    may_be_nan: bool = False
    is_optional: bool = False

    @property
    def axis(self) -> str | None:
        """``"cells"`` or ``"genes"`` if the first axis is one of them."""
        return self.axes[0] if self.axes and self.axes[0] in {"cells", "genes"} else None


def array(dtype: str, *axes: str, may_be_nan: bool = False, optional: bool = False) -> Any:
    """Declare an array field with these axes; without axes, a number. NaN stands for what is not known."""
    return _declared(ArraySpec(dtype, axes, may_be_nan=may_be_nan, is_optional=optional))


def column(dtype: str, *, optional: bool = False) -> Any:
    """Declare one number per cell that an AnnData shows as a column of `.obs`."""
    return _declared(ArraySpec(dtype, ("cells",), is_column=True, is_optional=optional))


def array_list(dtype: str) -> Any:
    """Declare a field that is a list of arrays, such as the weights of a network."""
    return field(metadata={"spec": ArraySpec(dtype, is_list=True)})


def _declared(spec: ArraySpec) -> Any:
    metadata = {"spec": spec}
    return field(default=None, metadata=metadata) if spec.is_optional else field(metadata=metadata)


class ArrayRecord:
    """Base of dataclasses whose fields are declared by :func:`array` and :func:`array_list`."""

    @classmethod
    def specs(cls) -> dict[str, ArraySpec]:
        """The declaration of each array field."""
        declared = {each.name: each.metadata.get("spec") for each in fields(cls)}  # type: ignore[arg-type]
        return {name: spec for name, spec in declared.items() if spec is not None}

    def take(self, *, cells: Any = None, genes: Any = None) -> Self:
        """The record of some cells and genes, in the order given."""
        index = {"cells": cells, "genes": genes}
        chosen = {
            name: getattr(self, name)[index[spec.axis]]
            for name, spec in self.specs().items()
            if spec.axis is not None and index[spec.axis] is not None and getattr(self, name) is not None
        }
        return replace(self, **chosen)  # type: ignore[type-var]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The cells of several records, one after the other; what is not of cells is that of the first."""
        of_cells = [name for name, spec in cls.specs().items() if spec.axis == "cells"]
        known = [name for name in of_cells if getattr(parts[0], name) is not None]
        values = {name: np.concatenate([getattr(part, name) for part in parts]) for name in known}
        return replace(parts[0], **values)  # type: ignore[type-var]

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Lengths of the axes by name."""
        sizes: dict[str, int] = {}
        for name, spec in self.specs().items():
            value = getattr(self, name)
            if spec.axes and value is not None:
                sizes |= dict(zip(spec.axes, value.shape, strict=True))
        return sizes

    def _check_range(self, name: str, low: float, high: float = np.inf) -> None:
        """Refuse values of an array outside a range; NaN where there may be some is in any."""
        value = getattr(self, name)
        if value is not None and (np.less(value, low) | np.greater(value, high)).any():
            msg = f"the array {name!r} has values outside {low:g} to {high:g}"
            raise ValueError(msg)

    def check_consistent(self) -> None:
        """Refuse arrays that do not go together, as of a damaged file.

        Raises
        ------
        ValueError
            With what is wrong.
        """

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays by name; the arrays of a list are numbered ``name_0``, ``name_1``, ..."""
        arrays: dict[str, np.ndarray] = {}
        for name, spec in self.specs().items():
            value = getattr(self, name)
            if spec.is_list:
                arrays |= {f"{name}_{position}": np.asarray(part) for position, part in enumerate(value)}
            elif value is not None:
                arrays[name] = np.asarray(value)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], sizes: Mapping[str, int], **others: Any) -> Self:
        """Build the record from what :meth:`to_arrays` gave.

        Parameters
        ----------
        arrays
            Arrays by name.
        sizes
            Known lengths of axes, such as ``{"genes": 2000}``.
        others
            Fields that are not arrays.

        Raises
        ------
        ValueError
            If an array is missing, has another kind of values, or does not fit the others.
        """
        values, known = dict(others), dict(sizes)
        for name, spec in cls.specs().items():
            if spec.is_list:
                numbered = (f"{name}_{position}" for position in range(len(arrays)))
                values[name] = [_checked(key, arrays[key], spec, None) for key in numbered if key in arrays]
                continue
            if name not in arrays and spec.is_optional:
                continue
            if name not in arrays:
                msg = f"the array {name!r} is missing"
                raise ValueError(msg)
            value = _checked(name, arrays[name], spec, known)
            values[name] = value if spec.axes else value.item()
        return cls(**values)


def _checked(name: str, value: Any, spec: ArraySpec, sizes: dict[str, int] | None) -> np.ndarray:
    """The array in its declared dtype; `sizes` collects the lengths of named axes, None skips their check."""
    # Files give text as objects or as NumPy's variable-width strings, which cannot be cast in one step.
    found = np.asarray(np.asarray(value, dtype=object), dtype=str) if spec.dtype == "U" else np.asarray(value)
    if spec.dtype != "U" and (
        found.dtype.kind not in "biuf" or (found.dtype.kind == "f") != (np.dtype(spec.dtype).kind == "f")
    ):
        msg = f"the array {name!r} has dtype {found.dtype}, expected {np.dtype(spec.dtype)}"
        raise ValueError(msg)
    if found.dtype.kind == "f" and not spec.may_be_nan and not np.isfinite(found).all():
        msg = f"the array {name!r} has values that are NaN or infinite"
        raise ValueError(msg)
    if sizes is not None:
        if found.ndim != len(spec.axes):
            msg = f"the array {name!r} has {found.ndim} dimensions, expected {len(spec.axes)}"
            raise ValueError(msg)
        for axis, size in zip(spec.axes, found.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                msg = f"the array {name!r} has {size} {axis}, expected {sizes[axis]}"
                raise ValueError(msg)
    if spec.dtype == "U":
        return found
    return np.ascontiguousarray(found, dtype=spec.dtype) if found.ndim else found.astype(spec.dtype)
