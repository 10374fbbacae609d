"""The estimator: plan, train and predict, cluster by cluster and subset by subset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..presets import check_number, resolve
from . import _arrays, _files, _inputs
from ._tasks import IMPUTED, NO_INPUTS, TRAINING_FAILED, Plan, Task, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tqdm import tqdm

    from ._arrays import Predicted
    from ._inputs import DropoutBlock
    from ._model import Network


class CNNImputer:
    """Predict probable dropouts with one convolutional network per cluster and subset of target genes.

    Parameters
    ----------
    preset
        Named set of values for the settings below that are not given.
    threshold
        A zero is predicted where its dropout probability is above this value.
    n_targets
        Target genes of one network.
    n_top
        Input genes for each target gene.
    max_dropout
        Largest share of the cells of a cluster in which an input gene may be called a dropout.
    log
        Train on log1p(counts) rather than on counts.
    learning_rate
        Adam's learning rate (1e-4).
    batch_size
        Cells in a training batch (32).
    max_epochs
        Most epochs a network is trained for (150).
    patience
        Epochs without a better validation loss before training stops (5).
    validation_fraction
        Share of the cells of a cluster kept for the validation loss (0.1).
    random_state
        Seed; every network draws from a stream of its own.
    keep_models
        Keep the weights (44 MB for each network of the paper's size), as :meth:`transform` and :meth:`save` need.
    verbose
        Show a progress bar over the networks in a terminal.

    Attributes
    ----------
    genes_, clusters_
        Names, ``(n_genes,)`` and ``(n_clusters,)``.
    status_
        ``(n_genes, n_clusters)`` int8, positions in :data:`scanpy_cnnimpute.network.STATUSES`.
    history_
        One dict per network: ``cluster``, ``subset``, ``n_targets``, ``n_inputs``, ``loss``, ``val_loss`` per epoch.

    Notes
    -----
    The paper, "CNN-based model construction". Values are counts on the way in and on the way out.

    Examples
    --------
    >>> import numpy as np
    >>> from scanpy_cnnimpute import CNNImputer
    >>> counts = np.random.default_rng(0).poisson(1.0, size=(40, 12))
    >>> imputer = CNNImputer(n_targets=4, max_dropout=1, max_epochs=2, verbose=False)
    >>> imputed = imputer.fit(counts).transform(counts)
    >>> bool((imputed[counts > 0] == counts[counts > 0]).all())
    True
    """

    def __init__(
        self,
        *,
        preset: str = "paper",
        threshold: float | None = None,
        n_targets: int | None = None,
        n_top: int | None = None,
        max_dropout: float | None = None,
        log: bool | None = None,
        learning_rate: float | None = None,
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
            n_targets=n_targets,
            n_top=n_top,
            max_dropout=max_dropout,
            log=log,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation_fraction=validation_fraction,
        )
        self.random_state = check_number("random_state", random_state, int, 0)
        self.keep_models = keep_models
        self.verbose = verbose
        self._tasks: list[Task] | None = None

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
            are neither targets nor inputs. Default: all.
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
    ) -> Any:
        """Train the networks and impute the same cells, one network at a time; see :meth:`fit`, :meth:`transform`."""
        counts = _arrays.checked_counts(X)
        run = self._run(counts, dropout=dropout, clusters=clusters, modelled=modelled, genes=genes)
        return _arrays.assemble(X, counts, run)

    def transform(
        self,
        X: Any,
        *,
        dropout: Any = None,
        clusters: Sequence[Any] | None = None,
        genes: Sequence[str] | None = None,
    ) -> Any:
        """Impute cells that have the genes of the training data.

        Parameters
        ----------
        X
            ``(n_cells, n_genes)`` counts, dense or sparse.
        dropout
            As in :meth:`fit`. Default: every zero of a gene that was a target in the cell's cluster is missing,
            which is what the gamma-normal model says.
        clusters
            Names out of ``clusters_``; ``None`` among them leaves a cell as it is. Default: the cluster with the most
            correlated mean profile.
        genes
            Names, in any order. Default: those of the training data, in their order.

        Returns
        -------
        The counts with the missing entries predicted: dense if `X` is dense, else CSR. Non-zero counts are
        bit-identical; the dtype is `X`'s, or the floating point type that holds its values and float32.

        Raises
        ------
        RuntimeError
            If the imputer is not fitted or did not keep its networks.
        ValueError
            If genes are missing or unknown, named in the message, or a cluster is unknown.
        """
        from ._model import Network

        if self._tasks is None:
            msg = "This CNNImputer is not fitted; call fit() first."
            raise RuntimeError(msg)
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
        network = Network(self.settings) if self._tasks else None
        parts = []
        for cluster in np.unique(codes[codes >= 0]):
            cells = np.flatnonzero(codes == cluster)
            values = self._values(aligned[cells])
            by_gene = values.tocsc()
            found = []
            for task in self._tasks:
                if network is None or task.cluster != cluster:
                    continue
                network.model.set_weights(task.weights)
                missing = _inputs.missing_entries(by_gene, cells, task.targets, block, self.settings.threshold)
                predicted, _ = self._predict(network, task, values, missing)
                found.append((order[task.targets], predicted))
            parts.append((cells, found))
        return _arrays.assemble(X, counts, parts)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one ``.keras`` file per network and one JSON into a folder, completely or not at all.

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
        if self._tasks is None or not self.keep_models:
            msg = "Only a fitted CNNImputer with keep_models=True can be saved."
            raise RuntimeError(msg)
        description = {
            "settings": self.settings.as_dict(),
            "random_state": self.random_state,
            "genes": self.genes_,
            "clusters": self.clusters_,
            "profiles": self._profiles.tolist(),
            "status": self.status_.tolist(),
            "history": self.history_,
        }
        _files.save(Path(path), description, self._tasks, self.settings, overwrite=overwrite)

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
        description, tasks = _files.load(Path(path))
        imputer = cls(**description["settings"], random_state=description["random_state"])
        imputer.genes_ = description["genes"]
        imputer.clusters_ = description["clusters"]
        imputer._profiles = np.array(description["profiles"])
        imputer.status_ = np.array(description["status"], dtype=np.int8)
        imputer.history_ = description["history"]
        imputer._tasks = tasks
        return imputer

    def _run(
        self, counts: sp.csr_array, *, dropout: Any, clusters: Any, modelled: Any, genes: Any
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Plan and train all networks; yields the cells of each cluster and what its networks predict for them."""
        from tqdm.auto import tqdm

        n_cells, n_genes = counts.shape
        genes = _arrays.gene_names(genes, n_genes)
        codes, names = _arrays.cluster_codes(clusters, n_cells)
        codes[np.diff(counts.indptr) == 0] = -1  # a cell without counts teaches nothing
        block = _arrays.dropout_block(dropout, counts.shape, np.arange(n_genes))
        members = [np.flatnonzero(codes == cluster) for cluster in range(len(names))]
        trusted = _arrays.trusted_genes(modelled, names, n_genes)
        plans = [
            plan(name, cells, counts, block, known, self.settings)
            for name, cells, known in zip(names, members, trusted, strict=True)
        ]
        self.genes_, self.clusters_ = genes, names
        self.status_ = np.stack([status for _, status in plans], axis=1)
        self.history_: list[dict[str, Any]] = []
        self._profiles = np.stack([_arrays.mean_profile(counts[cells]) for cells in members])
        self._tasks = None

        tasks: list[Task] = []
        total = sum(len(planned.subsets) for planned, _ in plans)
        silent = None if self.verbose else True
        with tqdm(total=total, desc="cnnImpute networks", unit="network", disable=silent) as bar:
            network: Network | None = None
            for cluster, (planned, _) in enumerate(plans):
                if planned.subsets and network is None:
                    from ._model import Network

                    network = Network(self.settings)
                yield (
                    members[cluster],
                    self._run_cluster(cluster, members[cluster], counts, planned, block, network, tasks, bar),
                )
        self._tasks = tasks

    def _run_cluster(
        self,
        cluster: int,
        cells: np.ndarray,
        counts: sp.csr_array,
        planned: Plan,
        block: DropoutBlock,
        network: Network | None,
        tasks: list[Task],
        bar: tqdm[Any],
    ) -> list[Predicted]:
        """Train the networks of a cluster one after the other; appends to `tasks`, returns what they predict."""
        values = self._values(counts[cells])
        by_gene = values.tocsc()
        found = []
        for number, targets in enumerate(planned.subsets):
            inputs = _inputs.select_inputs(by_gene, targets, planned.candidates, self.settings.n_top)
            if network is None or not inputs.size:
                self.status_[targets, cluster] = NO_INPUTS
                bar.update()
                continue
            task = Task(cluster=cluster, subset=number, targets=targets, inputs=inputs)
            missing = _inputs.missing_entries(by_gene, cells, targets, block, self.settings.threshold)
            losses = self._train(network, task, values, by_gene, missing)
            predicted, finite = self._predict(network, task, values, missing)
            self.status_[targets, cluster] = np.where(finite, IMPUTED, TRAINING_FAILED)
            sizes = {"n_targets": int(targets.size), "n_inputs": int(inputs.size)}
            self.history_.append({"cluster": self.clusters_[cluster], "subset": number, **sizes, **losses})
            if self.keep_models:
                task.weights = network.model.get_weights()
            tasks.append(task)
            found.append((targets, predicted))
            bar.update()
        return found

    def _train(
        self, network: Network, task: Task, values: sp.csr_array, by_gene: sp.csc_array, missing: np.ndarray
    ) -> dict[str, list[float]]:
        from ._model import MASK
        from ._training import train

        targets = by_gene[:, task.targets].toarray()
        targets[missing] = MASK
        seed = np.random.SeedSequence(self.random_state, spawn_key=(task.cluster, task.subset))
        return train(network, values[:, task.inputs], targets, self.settings, seed)

    def _predict(
        self, network: Network, task: Task, values: sp.csr_array, missing: np.ndarray
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Predicted counts of the missing entries (cells x targets), and which targets were predicted finitely."""
        from ._training import predict

        predicted = predict(network.model, values[:, task.inputs], self.settings)[:, : task.targets.size]
        # A network that runs away gives infinite counts: such genes stay as they are.
        with np.errstate(over="ignore"):
            predicted = np.maximum(np.expm1(predicted) if self.settings.log else predicted, 0.0)
        finite = np.isfinite(predicted).all(axis=0)
        return sp.csr_array(np.where(missing & finite, predicted, np.float32(0))), finite

    def _values(self, counts: sp.csr_array) -> sp.csr_array:
        """What the networks see: log1p(counts), or counts, float32."""
        values = counts.astype(np.float32)
        return values.log1p() if self.settings.log else values
