"""Groups of cells to compare, the values that are tested, and the scores of genes and decoys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._anndata.counts import get_counts, layer_matrices, layer_names, open_counts
from .._anndata.fingerprint import check_fingerprint
from .._anndata.models import IMPUTE_FUNCTION, load_dropout, load_imputer, require_imputer
from .._anndata.results import stored_record, written_by
from .._checks import check_names, warn_user
from ..differential import TESTS, Contrast, ImputedDecoys, decoys_of, log2_fold_changes, mixing
from ..dropout import ModelledDropout
from ..imputation import find_imputer
from ..imputation.default import MoleculeImputer
from ._inputs import obs_column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

REST = "rest"
MIN_CELLS = 2  # in a group: a variance needs two
MIN_MIXING = 0.5  # of the groups in bins of library size; groups of 3 times the depth have less than 0.1
TARGET_SUM = 1e4
BLOCK_GENES = 500  # tested at a time
BLOCK_BYTES = 2**28  # of their values


def read_contrasts(adata: AnnData, groupby: str, groups: Any, reference: Any) -> dict[str, Contrast]:
    """The groups by name, each with the cells that it is compared with, as positions in `adata`."""
    labels = obs_column(adata, "groupby", groupby)
    if np.ndim(reference) or pd.isna(reference):
        msg = f"reference={reference!r} has type {type(reference).__name__}, expected the name of a group or {REST!r}."
        raise TypeError(msg)
    names = labels.astype(object).map(str, na_action="ignore")
    sizes = names.value_counts()
    categorical = isinstance(labels.dtype, pd.CategoricalDtype)
    known = labels.cat.categories.astype(str) if categorical else sorted(sizes.index)
    available = [name for name in known if sizes.get(name, 0) >= MIN_CELLS]
    if reference == REST and REST in available:
        msg = f"adata.obs[{groupby!r}] has a group {REST!r}, which stands for all other cells here: rename it."
        raise ValueError(msg)
    if groups is None or isinstance(groups, str):
        if groups != "all":
            msg = f"groups={groups!r} is not allowed: 'all', or a sequence of names such as [{groups!r}]."
            raise ValueError(msg)
        asked = [name for name in available if name != str(reference)]
    else:
        asked = [str(name) for name in check_names("groups", groups, (object,), "the name of a group")]
    wanted = asked if reference == REST else [*asked, str(reference)]
    missing = [name for name in wanted if name not in available]
    if missing:
        msg = (
            f"{missing} are no groups of at least {MIN_CELLS} cells in adata.obs[{groupby!r}]. Available: {available}"
            f"{f'; reference={REST!r} stands for all other cells' if str(reference) in missing else ''}."
        )
        raise ValueError(msg)
    if not asked or (reference != REST and str(reference) in asked):
        msg = f"groups={groups!r} and reference={reference!r} leave no two groups to compare. Available: {available}."
        raise ValueError(msg)
    contrasts = {}
    for name in asked:
        inside = (names == name).fillna(False).to_numpy(dtype=bool)
        other = ~inside if reference == REST else (names == str(reference)).fillna(False).to_numpy(dtype=bool)
        if other.sum() < MIN_CELLS:
            msg = f"Only {int(other.sum())} cells are not in the group {name!r}: there is nothing to compare it with."
            raise ValueError(msg)
        contrasts[name] = Contrast(group=np.flatnonzero(inside), reference=np.flatnonzero(other))
    return contrasts


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Scores, means of log1p(CP10k) and fold changes of genes, ``(n_genes,)``; scores and means of decoys.

    `seen` tells which have a value in any of the cells.
    """

    scores: np.ndarray
    mean: np.ndarray
    log2_fold_change: np.ndarray
    seen: np.ndarray
    decoy_scores: np.ndarray
    decoy_mean: np.ndarray
    decoy_seen: np.ndarray


class LayerValues:
    """Values of a layer for tests, log1p(CP10k) at the observed library sizes, gene block by gene block."""

    def __init__(self, adata: AnnData, layer: str | None, *, caller: str, n_decoys: int, random_state: int) -> None:
        self.is_imputed = layer is not None and written_by(adata, layer) == IMPUTE_FUNCTION
        self._random_state, self._n_decoys = random_state, n_decoys
        self._fitted: tuple[Any, Any, Any, Any] | None = None  # counts, model, cells, imputer
        self._matrix: Any = None
        if layer is not None and self.is_imputed and n_decoys and _imputes_decoys(adata, layer):
            require_imputer(adata, layer)
            params = stored_record(adata, layer)["params"]
            counts = open_counts(adata, params.get("layer"), caller=caller, integers=False)
            check_fingerprint(adata, layer, counts)
            dropout = load_dropout(adata, params["dropout_key"], counts)
            if not isinstance(dropout, ModelledDropout) or dropout.has_layer:
                msg = (
                    f"null='decoys' imputes decoys with the fitted dropout model, but {layer!r} was imputed with "
                    "probabilities of your own. Pass null=None, or test the counts."
                )
                raise ValueError(msg)
            self._fitted = counts.load(), dropout.model, dropout.cells, load_imputer(adata, layer)
            self.library_size = dropout.cells.library_size
            return
        if layer is not None and layer not in layer_names(adata) and self.is_imputed:
            msg = f"The layer {layer!r} is not stored: pass null='decoys', or impute again with store='layer'."
            raise ValueError(msg)
        self._matrix = observed = next(iter(layer_matrices(adata, [layer], caller=caller).values()))
        if layer is not None and self.is_imputed:
            source = stored_record(adata, layer)["params"].get("layer")
            observed = get_counts(adata, source, caller=caller, integers=False)
            if n_decoys:
                warn_user(
                    f"{caller}: decoys of {layer!r} are its values permuted among cells, as its imputer cannot impute "
                    "them: what imputed cells share is not in them, and p-values are too small."
                )
        self.library_size = observed.sum(axis=1, dtype=np.float64)

    def _warn_if_unmixed(self, compared: np.ndarray, contrasts: Sequence[Contrast]) -> None:
        """Decoys of cells that are permuted among their own group alone keep what the group has of its own."""
        for contrast in contrasts if self._n_decoys else []:
            in_group = np.zeros(compared.size, dtype=bool)
            in_group[contrast.group] = True
            found = mixing(self.library_size[compared], in_group)
            if found < MIN_MIXING:
                warn_user(
                    f"The groups differ so much in library size that cells of similar size are mostly of one group "
                    f"(mixing {found:.2f}, 1 is best). Decoys then keep part of the differences between the groups, "
                    "and few genes are found. Compare cells of similar depth."
                )
                return

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        matrix: Any = self._matrix if self._fitted is None else self._fitted[0]
        return matrix.shape[1]

    def reader(self, compared: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """A function of genes that gives their values, and those of their decoys, in the cells that are compared."""
        per_10k = (TARGET_SUM / np.maximum(self.library_size[compared], 1.0)).astype(np.float32)[:, None]
        imputed = None
        if self._fitted is not None:
            imputed = ImputedDecoys(*self._fitted, compared=compared, random_state=self._random_state)
        by_gene: Any = None if self._matrix is None else self._matrix[compared].tocsc()

        def read(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if imputed is not None:
                own, decoys = imputed.block(genes, self._n_decoys)
            else:
                own = by_gene[:, genes].toarray().astype(np.float32)
                decoys = decoys_of(own, self.library_size[compared], genes, self._random_state, self._n_decoys)
            return np.log1p(own * per_10k), np.log1p(decoys * per_10k)

        return read

    def test(self, contrasts: Sequence[Contrast], methods: Sequence[str]) -> dict[str, list[Tested]]:
        """Scores of contrasts that all divide the same cells, by each method; values are read once for all."""
        compared = compared_cells(contrasts[0])
        inside = [
            Contrast(group=np.searchsorted(compared, c.group), reference=np.searchsorted(compared, c.reference))
            for c in contrasts
        ]
        read = self.reader(compared)
        entry_bytes = 8 * (1 + self._n_decoys)
        width = int(np.clip(BLOCK_BYTES // (entry_bytes * max(compared.size, 1)), 1, BLOCK_GENES))
        self._warn_if_unmixed(compared, inside)
        parts: dict[str, list[dict[str, np.ndarray]]] = {method: [] for method in methods}
        for start in range(0, self.n_genes, width):
            own, decoys = read(np.arange(start, min(start + width, self.n_genes)))
            described = {
                "mean": own.mean(axis=0, dtype=np.float64),
                "log2_fold_change": np.stack([log2_fold_changes(own, each) for each in inside]),
                "seen": np.any(own > 0, axis=0),
                "decoy_mean": decoys.mean(axis=0, dtype=np.float64),
                "decoy_seen": np.any(decoys > 0, axis=0),
            }
            for method in methods:
                scores = {"scores": TESTS[method](own, inside), "decoy_scores": TESTS[method](decoys, inside)}
                parts[method].append({**described, **scores})
        return {method: _by_contrast(blocks, len(contrasts)) for method, blocks in parts.items()}


def _by_contrast(blocks: list[dict[str, np.ndarray]], n_contrasts: int) -> list[Tested]:
    """Blocks of genes put together; arrays of two dimensions have a row for each contrast."""
    joined = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in blocks[0]}
    return [
        Tested(**{name: value if value.ndim == 1 else value[row] for name, value in joined.items()})
        for row in range(n_contrasts)
    ]


def compared_cells(contrast: Contrast) -> np.ndarray:
    """Positions of all cells of a contrast, rising."""
    return np.union1d(contrast.group, contrast.reference)


def _imputes_decoys(adata: AnnData, layer: str) -> bool:
    """Whether the layer comes from an imputer that can impute decoys."""
    params = stored_record(adata, layer)["params"]
    kind = find_imputer(params["preset"], params["estimate"], params.get("entries", "zeros"))
    return issubclass(kind, MoleculeImputer)


def test_layer(
    values: LayerValues, contrasts: dict[str, Contrast], methods: Sequence[str], *, shared: bool
) -> dict[str, dict[str, Tested]]:
    """Test all contrasts by each method; those against the rest share the work."""
    names = [list(contrasts)] if shared else [[name] for name in contrasts]
    tested: dict[str, dict[str, Tested]] = {method: {} for method in methods}
    for together in names:
        for method, results in values.test([contrasts[name] for name in together], methods).items():
            tested[method].update(zip(together, results, strict=True))
    return tested


def as_records(names: Sequence[str], columns: dict[str, np.ndarray], dtype: str) -> np.ndarray:
    """One column per group, as Scanpy stores results."""
    return pd.DataFrame(columns, columns=list(names)).to_records(index=False, column_dtypes=dict.fromkeys(names, dtype))
