"""``CNNImputer``: fit, transform, save and load every imputer, on arrays or an AnnData."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from . import _saved
from ._anndata.counts import check_adata, open_counts
from ._anndata.fingerprint import check_fingerprint
from ._anndata.models import load_dropout_model, load_imputer, require_dropout_model, require_imputer
from ._anndata.results import stored_record
from ._anndata.selection import check_index
from ._checks import check_choice, check_key, check_number, check_seed, check_vector, is_list, quote_some
from ._counts import Counts, CountsInMemory, DaskCounts, joined_blocks
from ._labels import distinct_names
from ._matrix import check_probabilities
from ._progress import show_progress
from .dropout import MODELS, AllMissing, Clusters, Dropout, GivenProbabilities, ModelledDropout, check_efficiency
from .dropout.protocols import PROTOCOLS, find_protocol
from .dropout.read_counts import CountType, resolve_count_type
from .imputation import Entries, FitOptions, Imputed, Imputer, Targets, find_imputer, resolve_settings
from .imputation.assemble import put_in
from .imputation.backend import check_backend
from .imputation.blocks import impute_lazily, lazy_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .dropout import DropoutModel

CALLER = "CNNImputer"


class CNNImputer:
    """Predict probable dropouts with convolutional networks from correlated genes.

    Parameters
    ----------
    preset
        ``"default"``: one network for all cells and genes. ``"paper"``: one network per cluster and subset of target
        genes.
    estimate
        ``"posterior_mean"``, ``"expected_count"`` or ``"conditional"``; see :func:`~scanpy_cnnimpute.pp.cnn_impute`.
        Default: the first, or the last with ``preset="paper"`` or if :meth:`fit` is given dropout probabilities.
    entries
        ``"zeros"`` predicts probable dropouts, ``"all"`` denoises every entry.
    gate
        Leave genes as they are that the model predicts worse than the baselines on held-out molecules. Default: on
        with a calibrated model.
    count_type
        ``"umi"`` if molecules were counted, ``"reads"`` if reads were, for the calibrated model; ``"auto"`` decides
        when it is fitted, see :func:`~scanpy_cnnimpute.pp.dropout_prob`.
    random_state
        Seed.
    verbose
        Show progress bars with the time left, in a log as lines.
    settings
        Settings of the preset, such as ``threshold`` or ``n_steps``: those of
        :func:`~scanpy_cnnimpute.pp.cnn_impute`, with the same defaults.

    Attributes
    ----------
    genes_
        ``(n_genes,)`` names.
    clusters_
        ``(n_clusters,)`` names.
    status_
        ``(n_genes, n_clusters)`` int8, positions in :data:`scanpy_cnnimpute.imputation.STATUSES`; one column for
        imputers without clusters.
    history_
        One dict per network: ``cluster``, ``subset``, ``n_targets``, ``n_inputs``, ``loss``, ``val_loss`` per epoch,
        or per check of the validation loss with the default preset, of which the first is before any training.

    Notes
    -----
    What :func:`~scanpy_cnnimpute.pp.cnn_impute` does, for arrays and for new cells. Values are counts on the way in and
    on the way out. Cells of a saved imputer's kind are described by their own counts: it does not matter which others
    are there.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> imputer = scnn.CNNImputer(n_steps=2, verbose=False).fit(adata[:200])
    >>> imputed = imputer.transform(adata[200:])
    >>> imputed.shape
    (97, 300)
    """

    def __init__(
        self,
        *,
        preset: str = "default",
        estimate: str | None = None,
        entries: Entries = "zeros",
        gate: bool | None = None,
        count_type: CountType = "auto",
        random_state: int = 0,
        verbose: bool = True,
        **settings: Any,
    ) -> None:
        kind = find_imputer(preset, estimate, entries)
        self.preset, self.estimate, self.entries = preset, estimate, entries
        self.gate = gate if gate is None else check_number("gate", gate, bool)
        check_choice("count_type", count_type, get_args(CountType))
        self.count_type: CountType = count_type
        self.random_state = check_seed(random_state)
        self.verbose = check_number("verbose", verbose, bool)
        self._overrides = settings
        # Without a stated estimate, settings of the conditional one are possible: fit() may be given probabilities.
        stated = estimate is not None or entries == "all" or kind.settings_type.has(settings)
        able = kind if stated else find_imputer(preset, "conditional")
        resolve_settings(able, estimate or able.estimates[0], settings)
        self._imputer: Imputer | None = None
        self._model: DropoutModel | None = None
        self._capture_efficiency: float | str | None = None

    def fit(
        self,
        X: Any,
        *,
        layer: str | None = None,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        capture_efficiency: float | str | np.ndarray | None = None,
        genes: Sequence[str] | None = None,
    ) -> Self:
        """Fit the dropout model and train the networks.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` raw counts, dense or sparse, or an AnnData.
        layer
            Layer of the AnnData with the counts. Default: its `X`.
        dropout
            Dropout probabilities of the same shape, dense or sparse. Default: those of a model that is fitted, the
            calibrated one or, with ``preset="paper"``, the gamma-normal mixture.
        clusters
            ``(n_cells,)`` names, for ``preset="paper"``; ``None`` among them leaves a cell out. Default: one cluster.
        capture_efficiency
            Share of the molecules that was counted, for all cells or ``(n_cells,)``, or the name of a protocol, for the
            calibrated model; see :func:`~scanpy_cnnimpute.pp.dropout_prob`.
        genes
            ``(n_genes,)`` names. Default: those of the AnnData, else positions.

        Returns
        -------
        The fitted imputer.

        Raises
        ------
        ValueError, TypeError
            For shapes that do not match and values that are no raw counts.
        RuntimeError
            If TensorFlow runs in graph mode in this process.
        """
        _check_order(X, clusters=clusters, capture_efficiency=capture_efficiency)
        counts, names = _read(X, layer, genes)
        with show_progress(self.verbose):
            kind, options, source = self._prepare(counts, names, dropout, clusters, capture_efficiency)
            self._imputer = kind.fit(counts, source, options)
            if not kind.trains_in_clusters:
                self._imputer.sample(counts, source)  # notes which genes are imputed
        return self

    def fit_transform(
        self,
        X: Any,
        *,
        layer: str | None = None,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        capture_efficiency: float | str | np.ndarray | None = None,
        genes: Sequence[str] | None = None,
        return_std: bool = False,
    ) -> Any:
        """Fit and impute the same cells; see :meth:`fit`, :meth:`transform`.

        Parameters
        ----------
        X, layer, dropout, clusters, capture_efficiency, genes
            As in :meth:`fit`.
        return_std
            Default preset: also return the standard deviations.

        Returns
        -------
        As :meth:`transform`.
        """
        _check_order(X, clusters=clusters, capture_efficiency=capture_efficiency)
        counts, names = _read(X, layer, genes)
        find_imputer(self.preset, self.estimate, self.entries).check_std(return_std=return_std)
        with show_progress(self.verbose):
            kind, options, source = self._prepare(counts, names, dropout, clusters, capture_efficiency)
            self._imputer = kind.fit(counts, source, options)
            if isinstance(counts, DaskCounts) and kind.is_stored:
                self._imputer.sample(counts, source)
                both = impute_lazily(counts, self._imputer, source, return_std=return_std)
            else:
                parts = self._imputer.predict_all(counts, source, clusters=options.clusters, return_std=return_std)
                parts = self._imputer.note_imputed(parts)
                both = put_in(counts, self._imputer, source, parts, return_std=return_std)
        return both if return_std else both[0]

    def transform(
        self,
        X: Any,
        *,
        layer: str | None = None,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        capture_efficiency: float | str | np.ndarray | None = None,
        genes: Sequence[str] | None = None,
        return_std: bool = False,
    ) -> Any:
        """Impute cells that have the genes of the training data, each described by its own counts.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` raw counts, dense or sparse, or an AnnData.
        layer
            Layer of the AnnData with the counts. Default: its `X`.
        dropout
            As in :meth:`fit`. Default: those of the fitted model; if :meth:`fit` was given probabilities, every zero of
            a gene that can be imputed is missing.
        clusters
            ``preset="paper"``: names out of ``clusters_``; ``None`` among them leaves a cell as it is. Default: the
            cluster with the most correlated mean profile.
        capture_efficiency
            As in :meth:`fit`. Default: the number given to :meth:`fit`, else assumed from the depth
            of each cell.
        genes
            Names, in any order. Default: those of the AnnData, else those of the training data, in their order.
        return_std
            Default preset: also return the standard deviations.

        Returns
        -------
        The counts with the missing entries predicted: dense if the counts are dense, else CSR; with ``entries="all"``
        dense. If zeros are predicted, observed counts are bit-identical. The dtype is that of the counts, or the
        floating point type that holds its values and float32. With ``return_std=True`` a pair: these and, dense or CSR,
        the standard deviations of the predicted entries, 0 elsewhere, float32.

        Raises
        ------
        RuntimeError
            If the imputer is not fitted.
        ValueError
            If genes are missing or unknown, named in the message, or a cluster is unknown.

        Notes
        -----
        With the calibrated dropout model cells of the fit, too, are described anew by their own counts.
        :meth:`fit_transform` keeps what the fit found for them: values at zeros differ by some per cent.
        """
        imputer = self._fitted()
        imputer.check_std(return_std=return_std)
        fitted = None if self._model is None else type(self._model)
        _refuse_unused(type(imputer), fitted, capture_efficiency=capture_efficiency)
        check_backend()
        _check_order(X, clusters=clusters, capture_efficiency=capture_efficiency)
        counts, names = _read(X, layer, genes)
        named = isinstance(X, AnnData) or genes is not None
        order = _align(names if named else None, counts.shape[1], self.genes_)
        codes = None if clusters is None else _clusters(clusters, counts.shape[0], allow_none=True)
        told = self._capture_efficiency if capture_efficiency is None else capture_efficiency
        use_model = self._model is not None and (dropout is None or imputer.needs_calibrated)
        impute = _NewCells(imputer, self._model if use_model else None, order, return_std)
        known = _KnownOfCells(
            clusters=codes,
            dropout=_columns(dropout, counts.shape, order),
            efficiency=_efficiency(told, counts) if use_model else None,
        )
        if isinstance(counts, DaskCounts):
            return impute.lazily(counts, known)
        with show_progress(self.verbose):
            return joined_blocks([impute(matrix, known.take(rows)) for rows, matrix in counts.matrices()])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write arrays and one JSON into a folder, or nothing.

        Parameters
        ----------
        path
            The folder.
        overwrite
            Replace a folder that a fitted imputer was saved in.

        Raises
        ------
        FileExistsError
            If `path` exists and is not to be overwritten, or is something else than a saved imputer.
        RuntimeError
            If the imputer is not fitted.
        """
        imputer = self._fitted()
        description = {
            "preset": imputer.preset,
            "estimate": imputer.estimate,
            "entries": imputer.entries,
            "settings": imputer.settings.as_dict(),
            "random_state": self.random_state,
            "genes": self.genes_,
            "history": imputer.history,
            "dropout_model": None if self._model is None else self._model.name,
            "capture_efficiency": self._capture_efficiency,
        }
        arrays = {f"imputer_{name}": value for name, value in imputer.to_arrays().items()}
        if self._model is not None:
            arrays |= {f"dropout_{name}": value for name, value in self._model.to_arrays().items()}
        _saved.save(Path(path), description, arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; no code is run, and nothing outside the folder is read.

        Parameters
        ----------
        path
            The folder.

        Returns
        -------
        A fitted imputer.

        Raises
        ------
        FileNotFoundError
            If there is no saved imputer.
        ValueError
            If it is damaged, or was written in a format that this version does not read.
        """
        description, arrays = _saved.load(Path(path))
        try:
            return cls._from_saved(description, arrays)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            msg = f"{path} holds no readable CNNImputer: {reason}."
            raise ValueError(msg) from error

    @classmethod
    def from_anndata(cls, adata: AnnData, key: str = "cnn_imputed") -> Self:
        """The imputer that :func:`~scanpy_cnnimpute.pp.cnn_impute` stored.

        Parameters
        ----------
        adata
            Annotated data after :func:`~scanpy_cnnimpute.pp.cnn_impute` with the default preset.
        key
            Its `key_added`.

        Returns
        -------
        A fitted imputer.

        Raises
        ------
        KeyError
            If none is stored under `key`.
        ValueError
            If it does not belong to the counts or names any more.
        """
        check_adata(adata, caller=f"{CALLER}.from_anndata", in_memory=False)
        require_imputer(adata, check_key("key", key))
        params = stored_record(adata, key)["params"]
        counts = open_counts(adata, params.get("layer"), caller=f"{CALLER}.from_anndata", integers=False)
        check_fingerprint(adata, key, counts)
        imputer = load_imputer(adata, key)
        model, dropout_key = None, params["dropout_key"]
        if "built_on" in stored_record(adata, key)["fingerprint"]:
            require_dropout_model(adata, dropout_key)
            model, _ = load_dropout_model(adata, dropout_key)
        loaded = cls._from_fitted(imputer, model, list(adata.var_names.astype(str)), int(params["random_state"]))
        told = None if model is None else stored_record(adata, dropout_key)["params"].get("capture_efficiency")
        of_cells = isinstance(told, str) and (told in adata.obs or find_protocol(told) is None)
        loaded._capture_efficiency = None if of_cells else told
        return loaded

    @property
    def status_(self) -> np.ndarray:
        """Status of each gene, in each cluster that has networks of its own."""
        return self._fitted().status

    @property
    def history_(self) -> list[dict[str, Any]]:
        """Losses of each network."""
        return self._fitted().history

    @property
    def clusters_(self) -> list[str]:
        """Names of the clusters."""
        return list(getattr(self._fitted(), "names", ["all"]))

    @property
    def settings(self) -> Any:
        """The settings that are, or would be, used."""
        if self._imputer is not None:
            return self._imputer.settings
        kind = find_imputer(self.preset, self.estimate, self.entries)
        return resolve_settings(kind, self.estimate or kind.estimates[0], self._overrides)

    def _fitted(self) -> Imputer:
        if self._imputer is None:
            msg = "This CNNImputer is not fitted; call fit() first."
            raise RuntimeError(msg)
        return self._imputer

    @classmethod
    def _from_saved(cls, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        genes = [str(name) for name in description["genes"]]
        kind = find_imputer(description["preset"], description["estimate"], description.get("entries", "zeros"))
        settings = kind.settings_type.from_overrides(description["settings"])
        sizes = {"genes": len(genes)}
        history = description["history"]
        if not isinstance(history, list) or not all(isinstance(network, dict) for network in history):
            msg = "the history is no list of networks"
            raise ValueError(msg)

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        imputer: Any = kind.from_arrays(
            part("imputer_"),
            sizes,
            settings=settings,
            estimate=description["estimate"],
            history=history,
        )
        model = None
        if description["dropout_model"] is not None:
            model = MODELS[description["dropout_model"]].from_arrays(part("dropout_"), sizes)
            model.check_consistent()
        imputer.check_consistent()
        loaded = cls._from_fitted(imputer, model, genes, check_seed(description["random_state"]))
        loaded._capture_efficiency = description["capture_efficiency"]
        return loaded

    @classmethod
    def _from_fitted(cls, imputer: Imputer, model: DropoutModel | None, genes: list[str], random_state: int) -> Self:
        loaded = cls(
            preset=imputer.preset,
            estimate=imputer.estimate,
            entries=imputer.entries,
            count_type=getattr(model, "count_type", "auto"),
            random_state=random_state,
            **imputer.settings.as_dict(),
        )
        loaded._imputer, loaded._model, loaded.genes_ = imputer, model, genes
        return loaded

    def _prepare(
        self,
        counts: Counts,
        names: list[str],
        dropout: Any,
        clusters: Sequence[Any] | None,
        capture_efficiency: float | str | np.ndarray | None,
    ) -> tuple[type[Imputer], FitOptions, Dropout]:
        """The imputer, its options, and the dropout probabilities of the cells."""
        check_backend()
        if counts.totals.nnz == 0:
            msg = (
                f"No cell has any counts: there is nothing to fit in {counts.shape[0]} cells x {counts.shape[1]} genes."
            )
            raise ValueError(msg)
        kind = find_imputer(self.preset, self.estimate, self.entries)
        if kind.needs_calibrated and dropout is not None:
            if self.estimate is not None or self.entries == "all":
                asked = "entries='all'" if self.estimate is None else f"estimate={self.estimate!r}"
                msg = f"{asked} needs the calibrated model: leave dropout= out, or take 'conditional'."
                raise ValueError(msg)
            kind = find_imputer(self.preset, "conditional")
        estimate = self.estimate or kind.estimates[0]
        settings = resolve_settings(kind, estimate, self._overrides)
        grouped = Clusters.single(counts.shape[0]) if clusters is None else _clusters(clusters, counts.shape[0])
        fitted = MODELS[kind.dropout_model] if dropout is None else None
        _refuse_unused(kind, fitted, capture_efficiency=capture_efficiency)
        _refuse_unused(kind, fitted, count_type=None if self.count_type == "auto" else self.count_type)
        self._imputer, self._model, self.genes_ = None, None, names
        # A number is a property of the protocol, an array one of these cells.
        self._capture_efficiency = _plain_efficiency(capture_efficiency)
        if fitted is not None:
            efficiency, count_type = _efficiency(capture_efficiency, counts), self.count_type
            if fitted.counts_molecules:
                count_type = resolve_count_type(counts, self.count_type, caller=CALLER)
            fit = fitted.fit(
                counts,
                clusters=grouped,
                capture_efficiency=efficiency,
                count_type=count_type,
                random_state=self.random_state,
            )
            self._model = fit.model
            source: Dropout = ModelledDropout(counts, fit.model, fit.cells)
        else:
            source = GivenProbabilities(_columns(dropout, counts.shape, None))
        everything = np.ones(counts.shape[1], dtype=bool)
        options = FitOptions(
            settings=settings,
            estimate=estimate,
            random_state=self.random_state,
            targets=Targets.of(self._model, everything, gate=self.gate is not False),
            clusters=grouped,
        )
        return kind, options, source


@dataclass(frozen=True, kw_only=True)
class _KnownOfCells:
    """What is told of new cells; None for what is not."""

    clusters: Clusters | None
    dropout: Any
    efficiency: np.ndarray | None

    def take(self, rows: np.ndarray) -> _KnownOfCells:
        clusters = self.clusters
        return _KnownOfCells(
            clusters=None if clusters is None else replace(clusters, codes=clusters.codes[rows]),
            dropout=None if self.dropout is None else self.dropout[rows],
            efficiency=None if self.efficiency is None else self.efficiency[rows],
        )


@dataclass(frozen=True)
class _NewCells:
    """Describes and imputes blocks of new cells: arrays, which travel to any process."""

    label: ClassVar[str] = "cnn-imputed"

    imputer: Imputer
    model: DropoutModel | None
    order: np.ndarray
    return_std: bool

    def __call__(self, matrix: Any, known: _KnownOfCells) -> Any:
        """Counts with predictions in them, or a pair of these and their standard deviations."""
        counts = CountsInMemory(matrix)
        in_order = bool((self.order == np.arange(self.order.size)).all())
        aligned = counts if in_order else CountsInMemory(counts.csr[:, self.order])
        source = self._dropout(aligned, known)
        parts = self.imputer.predict(aligned.csr, source, clusters=known.clusters, return_std=self.return_std)
        if not in_order:
            parts = _reordered(parts, counts, self.order)
        both = put_in(counts, self.imputer, source, parts, return_std=self.return_std)
        return both if self.return_std else both[0]

    def _dropout(self, counts: CountsInMemory, known: _KnownOfCells) -> Dropout:
        """Dropout probabilities: those given, the model's, or 1 everywhere."""
        if self.model is None:
            return AllMissing(counts.shape[1]) if known.dropout is None else GivenProbabilities(known.dropout)
        clusters = known.clusters if self.model.needs_clusters else None
        cells = self.model.describe(counts.csr, clusters=clusters, capture_efficiency=known.efficiency)
        return ModelledDropout(counts, self.model, cells, known.dropout)

    def lazily(self, counts: DaskCounts, known: _KnownOfCells) -> Any:
        """The same as a Dask array, or a pair of them."""
        both = lazy_layers(counts, self, self.imputer, by_cell=known.take, return_std=self.return_std)
        return both if self.return_std else both[0]


def _read(X: Any, layer: str | None, genes: Sequence[str] | None) -> tuple[Counts, list[str]]:
    """The checked counts, and the names of the genes."""
    if isinstance(X, AnnData):
        counts = open_counts(X, layer, caller=CALLER)
        names: Any = X.var_names if genes is None else genes
    else:
        if layer is not None:
            msg = f"layer={layer!r} needs an AnnData, got {type(X).__name__}."
            raise TypeError(msg)
        counts = Counts.of(X)
        counts.check(caller=CALLER)
        names = range(counts.shape[1]) if genes is None else genes
    if not is_list(names):
        msg = f"genes has type {type(names).__name__}, expected a list of names, one for each column of X in its order."
        raise TypeError(msg)
    names = [str(name) for name in names]
    if len(names) != counts.shape[1]:
        msg = f"genes has {len(names)} names, X has {counts.shape[1]} columns."
        raise ValueError(msg)
    return counts, names


def _check_order(X: Any, **of_cells: Any) -> None:
    """Refuse Series whose cells are not those of the AnnData, in its order."""
    if isinstance(X, AnnData):
        for name, values in of_cells.items():
            check_index(name, values, X.obs_names, "adata.obs_names")


def _refuse_unused(kind: type[Imputer], model: type[DropoutModel] | None, **given: Any) -> None:
    """Refuse a parameter of the calibrated model that would be ignored."""
    for name, value in given.items():
        if value is not None and (model is None or not model.counts_molecules):
            msg = (
                f"{name}={value!r} is a parameter of the calibrated dropout model, which is not fitted with "
                f"preset={kind.preset!r} or if dropout= is given: leave it out."
            )
            raise ValueError(msg)


def _align(names: list[str] | None, n_genes: int, trained: list[str]) -> np.ndarray:
    """Column of the new data for every trained gene; errors name genes that are missing or too many."""
    if names is None:
        if n_genes != len(trained):
            msg = f"X has {n_genes} genes, the imputer was trained on {len(trained)}; pass genes= to align."
            raise ValueError(msg)
        return np.arange(n_genes)
    if names == trained:
        return np.arange(n_genes)
    for which, index in (("genes", pd.Index(names)), ("the training data", pd.Index(trained))):
        if not index.is_unique:
            twice = index[index.duplicated()].unique().tolist()
            msg = f"{which} has duplicate names, which cannot be aligned: {quote_some(twice)}."
            raise ValueError(msg)
    missing, extra = sorted(set(trained) - set(names)), sorted(set(names) - set(trained))
    if missing or extra:
        parts = [f"missing: {quote_some(missing)}"] * bool(missing)
        parts += [f"not trained on: {quote_some(extra)}"] * bool(extra)
        msg = f"The genes differ from those of the training data; {'; '.join(parts)}."
        raise ValueError(msg)
    return pd.Index(names).get_indexer(trained)


def _clusters(clusters: Any, n_cells: int, *, allow_none: bool = False) -> Clusters:
    if not is_list(clusters):
        msg = f"clusters={clusters!r} has type {type(clusters).__name__}, expected a name for each of {n_cells} cells."
        raise TypeError(msg)
    given = pd.Categorical(clusters).remove_unused_categories()
    if len(given) != n_cells:
        msg = f"clusters has {len(given)} labels, X has {n_cells} cells."
        raise ValueError(msg)
    if not len(given.categories) and not allow_none:
        msg = "No cell has a cluster."
        raise ValueError(msg)
    return Clusters(codes=given.codes.astype(np.int64), names=distinct_names(given))


def _columns(dropout: Any, shape: tuple[int, int], order: np.ndarray | None) -> Any:
    """Checked dropout probabilities with their columns in the order of the trained genes."""
    if dropout is None:
        return None
    matrix = check_probabilities(dropout, where="dropout")
    if matrix.shape != shape:
        msg = f"dropout has shape {matrix.shape}, X has {shape}."
        raise ValueError(msg)
    return matrix if order is None else matrix[:, order]


def _plain_efficiency(capture_efficiency: Any) -> float | str | None:
    """What is saved of a capture efficiency: text or a plain number, and nothing of an array."""
    if capture_efficiency is None or isinstance(capture_efficiency, str):
        return capture_efficiency
    if np.ndim(capture_efficiency):
        return None
    return float(check_number("capture_efficiency", capture_efficiency, float))


def _efficiency(capture_efficiency: float | str | np.ndarray | None, counts: Counts) -> np.ndarray | None:
    if capture_efficiency is None:
        return None
    if isinstance(capture_efficiency, str):
        protocol = find_protocol(capture_efficiency)
        if protocol is None:
            msg = f"capture_efficiency={capture_efficiency!r} is not known. Available: {list(PROTOCOLS)}."
            raise KeyError(msg)
        capture_efficiency = protocol.efficiency
    if not is_list(capture_efficiency):
        given = np.asarray(check_number("capture_efficiency", capture_efficiency, float))
    elif np.asarray(capture_efficiency).dtype == bool:
        msg = "capture_efficiency has dtype bool, expected shares of the molecules."
        raise TypeError(msg)
    else:
        given = check_vector("capture_efficiency", capture_efficiency)
    if given.shape not in {(), counts.shape[:1]}:
        msg = f"capture_efficiency has shape {given.shape}, expected a number or ({counts.shape[0]},)."
        raise ValueError(msg)
    counted = counts.totals.n_genes > 0
    return check_efficiency(np.broadcast_to(given, counted.shape), counted, where="capture_efficiency")


def _reordered(parts: Iterator[Imputed], counts: CountsInMemory, order: np.ndarray) -> Iterator[Imputed]:
    """Predictions of the trained genes in the columns of the user, whose counts are these."""

    def moved(values: sp.csr_array | None) -> sp.csr_array | None:
        if values is None:
            return None
        new = sp.csr_array((values.data, order[values.indices], values.indptr), shape=values.shape)
        new.sort_indices()
        return new

    for part in parts:
        own = counts.rows(part.cells)
        yield Imputed(cells=part.cells, counts=own, values=moved(part.values), deviation=moved(part.deviation))
