"""The estimator: one front for the networks of every preset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from . import _saved as _files
from ._checks import check_number
from .imputation import arrays as _arrays
from .imputation.default.features import BlockNetworks
from .imputation.default.molecules import RateNetworks
from .imputation.default.nonzero import ConditionalNetworks
from .imputation.paper.networks import PublishedNetworks
from .presets import BlockSettings, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .imputation.arrays import Predicted
    from .imputation.default.features import Estimate
    from .imputation.default.molecules import ExpectedCounts
    from .imputation.paper.inputs import DropoutBlock

    Networks = PublishedNetworks | ConditionalNetworks | RateNetworks


class CNNImputer:
    """Predict probable dropouts with convolutional networks from correlated genes.

    Parameters
    ----------
    preset
        ``"default"``: one network for all cells and genes. ``"paper"``: one network per cluster and subset of target
        genes. Each has its own settings; those not given have the preset's values.
    threshold
        A zero is predicted where its dropout probability is above this value (paper: 0.5).
    n_top
        Input genes for each target gene (5).
    learning_rate
        Adam's learning rate (default: 1e-2 at the first step; paper: 1e-4).
    n_components
        Default only: most components of the low rank; fewer for fewer than ten cells each (30).
    n_folds
        Default only: parts of the non-zeros, each of which is hidden once (5).
    n_members
        Default only: networks that are averaged (1).
    n_steps
        Default only: batches that a network is trained on (300).
    n_targets
        Paper only: target genes of one network (512).
    max_dropout
        Paper only: largest share of a cluster's cells in which an input gene may be called a dropout (0.5).
    log
        Paper only: train on log1p(counts) rather than on counts (True).
    batch_size
        Paper only: cells in a training batch (32).
    max_epochs
        Paper only: most epochs a network is trained for (150).
    patience
        Paper only: epochs without a better validation loss before training stops (5).
    validation_fraction
        Paper only: share of the cells of a cluster kept for the validation loss (0.1).
    random_state
        Seed; every network draws from a stream of its own.
    keep_models
        Keep the weights (paper: 44 MB for each network), as :meth:`transform` and :meth:`save` need.
    verbose
        Show a progress bar in a terminal.

    Attributes
    ----------
    genes_, clusters_
        Names, ``(n_genes,)`` and ``(n_clusters,)``.
    status_
        ``(n_genes, n_clusters)`` int8, positions in :data:`scanpy_cnnimpute.network.STATUSES`.
    history_
        One dict per network: ``cluster``, ``subset``, ``n_targets``, ``n_inputs``, ``loss``, ``val_loss`` per epoch,
        or per check of the validation loss with the default preset, of which the first is before any training.

    Notes
    -----
    The paper, "CNN-based model construction", for ``preset="paper"``. Values are counts on the way in and on the way
    out. The default predicts what a count is, given that it is not zero; see
    :class:`scanpy_cnnimpute.network.ConditionalNetworks`.

    Examples
    --------
    >>> import numpy as np
    >>> from scanpy_cnnimpute import CNNImputer
    >>> counts = np.random.default_rng(0).poisson(1.0, size=(40, 12))
    >>> imputer = CNNImputer(n_steps=2, verbose=False)
    >>> imputed = imputer.fit(counts).transform(counts)
    >>> bool((imputed[counts > 0] == counts[counts > 0]).all())
    True
    """

    def __init__(
        self,
        *,
        preset: str = "default",
        threshold: float | None = None,
        n_top: int | None = None,
        learning_rate: float | None = None,
        n_components: int | None = None,
        n_folds: int | None = None,
        n_members: int | None = None,
        n_steps: int | None = None,
        n_targets: int | None = None,
        max_dropout: float | None = None,
        log: bool | None = None,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        patience: int | None = None,
        validation_fraction: float | None = None,
        random_state: int = 0,
        keep_models: bool = True,
        verbose: bool = True,
    ) -> None:
        self.settings = resolve(
            preset,
            threshold=threshold,
            n_top=n_top,
            learning_rate=learning_rate,
            n_components=n_components,
            n_folds=n_folds,
            n_members=n_members,
            n_steps=n_steps,
            n_targets=n_targets,
            max_dropout=max_dropout,
            log=log,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation_fraction=validation_fraction,
        )
        self.preset = preset
        self.random_state = check_number("random_state", random_state, int, 0)
        self.keep_models = keep_models
        self.verbose = verbose
        self._networks: Networks | None = None

    def fit(
        self,
        X: Any,
        *,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        modelled: Mapping[str, np.ndarray] | None = None,
        genes: Sequence[str] | None = None,
    ) -> CNNImputer:
        """Train the networks.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` counts, dense or sparse.
        dropout
            Dropout probabilities of the same shape, dense or sparse, or a function of cell and gene indices that
            returns a dense block. Default: every zero is missing.
        clusters
            ``(n_cells,)`` names; ``None`` among them leaves a cell out. Default: one cluster.
        modelled
            For each cluster, ``(n_genes,)`` bool: genes whose dropout probabilities mean something there. The others
            are not predicted, and with ``preset="paper"`` no inputs either. Default: all.
        genes
            ``(n_genes,)`` names. Default: their positions.

        Returns
        -------
        The fitted imputer.

        Raises
        ------
        ValueError, TypeError
            For shapes that do not match and counts that are negative or not finite.
        """
        counts = _arrays.checked_counts(X)
        for _ in self._run(counts, dropout=dropout, clusters=clusters, modelled=modelled, genes=genes):
            pass
        return self

    def fit_transform(
        self,
        X: Any,
        *,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        modelled: Mapping[str, np.ndarray] | None = None,
        genes: Sequence[str] | None = None,
        return_std: bool = False,
    ) -> Any:
        """Train the networks and impute the same cells; see :meth:`fit`, :meth:`transform`.

        Parameters
        ----------
        X, dropout, clusters, modelled, genes
            As in :meth:`fit`.
        return_std
            Default preset: also return the standard deviations.

        Returns
        -------
        As :meth:`transform`.
        """
        return self.fit_transform_counts(
            X,
            _arrays.checked_counts(X),
            dropout=dropout,
            clusters=clusters,
            modelled=modelled,
            genes=genes,
            return_std=return_std,
        )

    def fit_transform_counts(
        self,
        X: Any,
        counts: sp.csr_array,
        *,
        no_gain: Mapping[str, np.ndarray] | None = None,
        expected: ExpectedCounts | None = None,
        estimate: Estimate | None = None,
        return_std: bool = False,
        **given: Any,
    ) -> Any:
        """What :meth:`fit_transform` does, for who has read the counts and knows more of them.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` counts, dense or sparse.
        counts
            The same, checked, as a canonical CSR array without stored zeros.
        no_gain
            Default preset: for each cluster, ``(n_genes,)`` bool: genes that are to stay as they are, with that
            status.
        expected
            Default preset: train :class:`~scanpy_cnnimpute.network.RateNetworks` with these instead of
            :class:`~scanpy_cnnimpute.network.ConditionalNetworks`; needs `estimate`.
        estimate
            Default preset: what to make of the predictions; takes cells and, in the order of CSR, their `indptr`,
            genes, predictions and dropout probabilities, returns counts and standard deviations. Default: the
            predictions.
        return_std
            Default preset: also return the standard deviations.
        given
            `dropout`, `clusters`, `modelled` and `genes`, as in :meth:`fit`.

        Returns
        -------
        As :meth:`transform`.
        """
        self._check_estimates(no_gain=no_gain, expected=expected, estimate=estimate, return_std=return_std or None)
        run = self._run(counts, no_gain=no_gain, expected=expected, estimate=estimate, return_std=return_std, **given)
        imputed = _arrays.assemble(X, counts, run)
        return (imputed, self._std(X, counts.shape, np.arange(counts.shape[1]))) if return_std else imputed

    def transform(
        self,
        X: Any,
        *,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        genes: Sequence[str] | None = None,
        return_std: bool = False,
    ) -> Any:
        """Impute cells that have the genes of the training data.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` counts, dense or sparse.
        dropout
            As in :meth:`fit`. Default: every zero of a gene that was imputed in the cell's cluster is missing.
        clusters
            Names out of ``clusters_``; ``None`` among them leaves a cell as it is. Default: the cluster with the most
            correlated mean profile.
        genes
            Names, in any order. Default: those of the training data, in their order.
        return_std
            Default preset: also return the standard deviations.

        Returns
        -------
        The counts with the missing entries predicted: dense if `X` is dense, else CSR. Non-zero counts are
        bit-identical; the dtype is `X`'s, or the floating point type that holds its values and float32. With
        ``return_std=True`` a pair: these and, dense or CSR, the standard deviations of log1p of the predicted entries,
        0 elsewhere, float32.

        Raises
        ------
        RuntimeError
            If the imputer is not fitted or did not keep its networks.
        ValueError
            If genes are missing or unknown, named in the message, or a cluster is unknown.
        """
        self._check_estimates(return_std=return_std or None)
        if self._networks is None:
            msg = "This CNNImputer is not fitted; call fit() first."
            raise RuntimeError(msg)
        if isinstance(self._networks, RateNetworks):
            msg = (
                "This CNNImputer was trained with expected=: it knows the cells that it was trained on, and no others."
            )
            raise RuntimeError(msg)  # noqa: TRY004 - not the type of an argument
        if not self.keep_models:
            msg = "This CNNImputer did not keep its networks; create it with keep_models=True."
            raise RuntimeError(msg)
        counts = _arrays.checked_counts(X)
        order = _arrays.align(genes, counts.shape[1], self.genes_)
        aligned = sp.csr_array(counts[:, order])
        block = _arrays.dropout_block(dropout, counts.shape, order)
        if clusters is None:
            # A cell without counts resembles nothing.
            seen = np.diff(aligned.indptr) > 0
            codes = np.where(seen, _arrays.nearest_profile(aligned, self._profiles), -1)
        else:
            codes, _ = _arrays.cluster_codes(clusters, counts.shape[0], self.clusters_)
        options: dict[str, Any] = {"return_std": True} if return_std else {}
        parts = self._networks.fill(aligned, codes, block, **options)
        imputed = _arrays.assemble(
            X, counts, ((cells, [(order[targets], values) for targets, values in found]) for cells, found in parts)
        )
        return (imputed, self._std(X, counts.shape, order)) if return_std else imputed

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one ``.keras`` file per network, one JSON and what else they need into a folder, or nothing.

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
            If the imputer is not fitted or did not keep its networks.
        """
        if self._networks is None or not self.keep_models or isinstance(self._networks, RateNetworks):
            msg = "Only a fitted CNNImputer with keep_models=True, and without expected=, can be saved."
            raise RuntimeError(msg)
        description = {
            "preset": self.preset,
            "settings": self.settings.as_dict(),
            "random_state": self.random_state,
            "genes": self.genes_,
            "clusters": self.clusters_,
            "profiles": self._profiles.tolist(),
            "status": self.status_.tolist(),
            "history": self.history_,
        }
        _files.save(Path(path), description, self._networks.save, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> CNNImputer:
        """Read what :meth:`save` wrote.

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
            If it was written in a format that this version does not read.
        """
        path = Path(path)
        description = _files.load(path)
        imputer = cls(preset=description["preset"], **description["settings"], random_state=description["random_state"])
        imputer.genes_ = description["genes"]
        imputer.clusters_ = description["clusters"]
        imputer._profiles = np.array(description["profiles"])
        imputer.status_ = np.array(description["status"], dtype=np.int8)
        imputer.history_ = description["history"]
        networks = imputer._new_networks()
        if not isinstance(networks, RateNetworks):
            networks.load(path, description["networks"])
        networks.status = imputer.status_
        imputer._networks = networks
        return imputer

    def _new_networks(self, expected: ExpectedCounts | None = None) -> Networks:
        if isinstance(self.settings, BlockSettings):
            if expected is not None:
                return RateNetworks(self.settings, self.random_state, expected)
            return ConditionalNetworks(self.settings, self.random_state)
        return PublishedNetworks(self.settings, self.random_state, keep_models=self.keep_models)

    def _check_estimates(self, **given: Any) -> None:
        for name, value in given.items():
            if value is not None and not isinstance(self.settings, BlockSettings):
                msg = f"{name} needs preset='default'; this is preset={self.preset!r}."
                raise ValueError(msg)

    def _run(
        self,
        counts: sp.csr_array,
        *,
        dropout: Any = None,
        clusters: Any = None,
        modelled: Any = None,
        genes: Any = None,
        no_gain: Any = None,
        expected: ExpectedCounts | None = None,
        estimate: Estimate | None = None,
        return_std: bool = False,
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Train all networks; yields cells and what the networks predict for them."""
        n_cells, n_genes = counts.shape
        genes = _arrays.gene_names(genes, n_genes)
        codes, names = _arrays.cluster_codes(clusters, n_cells)
        codes[np.diff(counts.indptr) == 0] = -1  # a cell without counts teaches nothing
        block: DropoutBlock = _arrays.dropout_block(dropout, counts.shape, np.arange(n_genes))
        trusted = _arrays.gene_masks("modelled", modelled, names, n_genes, default=True)
        closed = _arrays.gene_masks("no_gain", no_gain, names, n_genes, default=False)
        self._networks = None
        self.genes_, self.clusters_ = genes, names
        if self.keep_models:  # to tell clusters of other cells
            self._profiles = np.stack(
                [_arrays.mean_profile(counts[np.flatnonzero(codes == cluster)]) for cluster in range(len(names))]
            )
        networks = self._new_networks(expected)
        if isinstance(networks, BlockNetworks):
            yield from networks.fit_fill(
                counts,
                codes,
                names,
                trusted,
                block,
                closed=closed,
                estimate=estimate,
                return_std=return_std,
                verbose=self.verbose,
            )
        else:
            yield from networks.fit_fill(counts, codes, names, trusted, block, verbose=self.verbose)
        self.status_, self.history_ = networks.status, networks.history
        self._networks = networks

    def _std(self, X: Any, shape: tuple[int, int], order: np.ndarray) -> Any:
        """Standard deviations of the last cells that were imputed, in the columns of the user."""
        assert isinstance(self._networks, BlockNetworks)  # noqa: S101 - checked when it was asked for
        parts = [(cells, [(order, values)]) for cells, values in self._networks.deviations]
        nothing = sp.csr_array(shape, dtype=np.float32)
        kind = np.zeros(shape, dtype=np.float32) if isinstance(X, np.ndarray) else X[:0].astype(np.float32)
        return _arrays.assemble(kind, nothing, parts)
