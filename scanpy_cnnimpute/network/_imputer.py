"""The estimator: plan, train and predict, cluster by cluster and subset by subset."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._counts import to_csr
from .._logging import logger
from ..presets import resolve
from . import _inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ._inputs import DropoutBlock
    from ._model import Network

STATUSES = (
    "imputed",
    "nothing missing",
    "not modelled",
    "too few cells",
    "no input genes",
    "training failed",
)
"""What happened to a gene in a cluster; the codes are the positions. Only ``"imputed"`` changes values."""

IMPUTED, NOTHING_MISSING, NOT_MODELLED, TOO_FEW_CELLS, NO_INPUTS, TRAINING_FAILED = range(len(STATUSES))

# Nine cells to learn from and one to validate on.
FEWEST_CELLS = 10
FORMAT = 1


@dataclass
class _Task:
    """One network: the target genes of one subset in one cluster."""

    cluster: int
    subset: int
    targets: np.ndarray
    inputs: np.ndarray
    weights: list[np.ndarray] | None = None


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
        self.random_state = random_state
        self.keep_models = keep_models
        self.verbose = verbose
        self._tasks: list[_Task] | None = None

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
            For shapes that do not match and values that are no counts.
        """
        for _ in self._run(X, dropout=dropout, clusters=clusters, modelled=modelled, genes=genes):
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
        run = self._run(X, dropout=dropout, clusters=clusters, modelled=modelled, genes=genes, impute=True)
        return _fill(X, list(run))

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
        counts = _checked_counts(X)
        # Trained gene g is column order[g] of X.
        order = self._align(genes, counts.shape[1])
        aligned = sp.csr_array(counts[:, order])
        block = _dropout_block(dropout, counts.shape, order)
        codes = self._assign(aligned) if clusters is None else _codes(clusters, counts.shape[0], self.clusters_)[0]
        if not self._tasks:
            return _fill(X, [])
        filled = []
        network = Network(self.settings)
        for cluster in np.unique(codes[codes >= 0]):
            cells = np.flatnonzero(codes == cluster)
            values = self._values(aligned[cells])
            by_gene = values.tocsc()
            for task in self._tasks:
                if task.cluster != cluster:
                    continue
                network.model.set_weights(task.weights)
                missing = _inputs.missing_entries(by_gene, cells, task.targets, block, self.settings.threshold)
                rows, columns, predicted, _ = self._predict(network, task, values, missing)
                filled.append((cells[rows], order[columns], predicted))
        return _fill(X, filled)

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
        from ._model import build_network

        if self._tasks is None or not self.keep_models:
            msg = "Only a fitted CNNImputer with keep_models=True can be saved."
            raise RuntimeError(msg)
        path = Path(path)
        if path.exists() and not (overwrite and (path / "imputer.json").is_file()):
            msg = f"{path} exists. Pass overwrite=True to replace a saved imputer, or choose another folder."
            raise FileExistsError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        networks = [
            {
                "file": f"cluster{task.cluster:03d}_subset{task.subset:04d}.keras",
                "cluster": task.cluster,
                "subset": task.subset,
                "targets": task.targets.tolist(),
                "inputs": task.inputs.tolist(),
            }
            for task in self._tasks
        ]
        description = {
            "format": FORMAT,
            "settings": self.settings.as_dict(),
            "random_state": self.random_state,
            "genes": self.genes_,
            "clusters": self.clusters_,
            "profiles": self._profiles.tolist(),
            "status": self.status_.tolist(),
            "history": self.history_,
            "networks": networks,
        }
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            model = build_network(self.settings)
            for task, entry in zip(self._tasks, networks, strict=True):
                model.set_weights(task.weights)
                model.save(temporary / entry["file"], include_optimizer=False)
            (temporary / "imputer.json").write_text(json.dumps(description), encoding="utf-8")
            # mkdtemp is private to its user; a saved model is an ordinary folder.
            temporary.chmod(0o755)
            if path.exists():
                retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                path.rename(retired / "imputer")
                temporary.rename(path)
                shutil.rmtree(retired)
            else:
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

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
        file = path / "imputer.json"
        if not file.is_file():
            msg = f"{path} holds no saved CNNImputer: {file.name} is missing."
            raise FileNotFoundError(msg)
        description = json.loads(file.read_text(encoding="utf-8"))
        if description.get("format") != FORMAT:
            msg = f"{path} has format {description.get('format')!r}; this version reads format {FORMAT}."
            raise ValueError(msg)
        imputer = cls(**description["settings"], random_state=description["random_state"])
        imputer.genes_ = description["genes"]
        imputer.clusters_ = description["clusters"]
        imputer._profiles = np.array(description["profiles"])
        imputer.status_ = np.array(description["status"], dtype=np.int8)
        imputer.history_ = description["history"]
        imputer._tasks = []
        for entry in description["networks"]:
            import keras

            imputer._tasks.append(
                _Task(
                    cluster=entry["cluster"],
                    subset=entry["subset"],
                    targets=np.array(entry["targets"], dtype=np.int64),
                    inputs=np.array(entry["inputs"], dtype=np.int64),
                    weights=keras.saving.load_model(path / entry["file"], compile=False).get_weights(),
                )
            )
        return imputer

    def _run(
        self, X: Any, *, dropout: Any, clusters: Any, modelled: Any, genes: Any, impute: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Plan and train all networks; with `impute`, yield rows, columns and values of what each one predicts."""
        from tqdm.auto import tqdm

        counts = _checked_counts(X)
        n_cells, n_genes = counts.shape
        block = _dropout_block(dropout, counts.shape, np.arange(n_genes))
        codes, names = _codes(clusters, n_cells)
        genes = list(map(str, range(n_genes) if genes is None else genes))
        if len(genes) != n_genes:
            msg = f"genes has {len(genes)} names, X has {n_genes} columns."
            raise ValueError(msg)

        status = np.full((n_genes, len(names)), NOTHING_MISSING, dtype=np.int8)
        plans = []
        for cluster, name in enumerate(names):
            cells = np.flatnonzero(codes == cluster)
            trusted = np.ones(n_genes, dtype=bool) if modelled is None else np.asarray(modelled[name], dtype=bool)
            plans.append(self._plan(name, cells, counts, block, trusted, status[:, cluster]))

        tasks: list[_Task] = []
        history: list[dict[str, Any]] = []
        network: Network | None = None
        total = sum(len(subsets) for subsets, _ in plans)
        silent = None if self.verbose else True
        with tqdm(total=total, desc="cnnImpute networks", unit="network", disable=silent) as bar:
            for cluster, (subsets, candidates) in enumerate(plans):
                cells = np.flatnonzero(codes == cluster)
                values = self._values(counts[cells])
                by_gene = values.tocsc()
                for number, targets in enumerate(subsets):
                    inputs = _inputs.select_inputs(by_gene, targets, candidates, self.settings.n_top)
                    if not inputs.size:
                        status[targets, cluster] = NO_INPUTS
                        bar.update()
                        continue
                    if network is None:
                        from ._model import Network

                        network = Network(self.settings)
                    missing = _inputs.missing_entries(by_gene, cells, targets, block, self.settings.threshold)
                    task = _Task(cluster=cluster, subset=number, targets=targets, inputs=inputs)
                    losses = self._train(network, task, values, by_gene, missing)
                    rows, columns, predicted, finite = self._predict(network, task, values, missing)
                    status[targets, cluster] = np.where(finite, IMPUTED, TRAINING_FAILED)
                    sizes = {"n_targets": int(targets.size), "n_inputs": int(inputs.size)}
                    history.append({"cluster": names[cluster], "subset": number, **sizes, **losses})
                    if self.keep_models:
                        task.weights = network.model.get_weights()
                    tasks.append(task)
                    bar.update()
                    if impute:
                        yield cells[rows], columns, predicted

        self.genes_, self.clusters_ = genes, names
        self.status_, self.history_ = status, history
        self._profiles = np.stack([_mean_profile(counts[codes == cluster]) for cluster in range(len(names))])
        self._tasks = tasks

    def _plan(
        self,
        name: str,
        cells: np.ndarray,
        counts: sp.csr_array,
        block: DropoutBlock,
        trusted: np.ndarray,
        status: np.ndarray,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Subsets of target genes of a cluster, and the genes that may be inputs; fills `status` in place."""
        if cells.size < FEWEST_CELLS:
            status[:] = TOO_FEW_CELLS
            logger.info("cluster %s has %d cells, fewer than the %d it takes to train", name, cells.size, FEWEST_CELLS)
            return [], np.empty(0, dtype=np.int64)
        by_gene = counts[cells].tocsc()
        usable = trusted & ~_inputs.is_constant(by_gene)
        shares = _inputs.dropout_shares(by_gene, cells, block, self.settings.threshold)
        status[~trusted | ((shares > 0) & ~usable)] = NOT_MODELLED
        targets = np.flatnonzero((shares > 0) & usable)
        return _inputs.subsets(targets, self.settings), np.flatnonzero((shares <= self.settings.max_dropout) & usable)

    def _train(
        self, network: Network, task: _Task, values: sp.csr_array, by_gene: sp.csc_array, missing: np.ndarray
    ) -> dict[str, list[float]]:
        from ._model import MASK
        from ._training import train

        targets = by_gene[:, task.targets].toarray()
        targets[missing] = MASK
        seed = np.random.SeedSequence(self.random_state, spawn_key=(task.cluster, task.subset))
        return train(network, values[:, task.inputs], targets, self.settings, seed)

    def _values(self, counts: sp.csr_array) -> sp.csr_array:
        """What the networks see: log1p(counts), or counts, float32."""
        values = counts.astype(np.float32)
        return values.log1p() if self.settings.log else values

    def _predict(
        self, network: Network, task: _Task, values: sp.csr_array, missing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values (counts) of the missing entries, and which targets were predicted finitely."""
        from ._training import predict

        predicted = predict(network.model, values[:, task.inputs], self.settings)[:, : task.targets.size]
        # A network that runs away gives infinite counts: such genes stay as they are.
        with np.errstate(over="ignore"):
            predicted = np.maximum(np.expm1(predicted) if self.settings.log else predicted, 0.0)
        finite = np.isfinite(predicted).all(axis=0)
        rows, columns = np.nonzero(missing & finite & (predicted > 0))
        return rows, task.targets[columns], predicted[rows, columns], finite

    def _align(self, genes: Sequence[str] | None, n_genes: int) -> np.ndarray:
        """Position in the new data of every trained gene."""
        if genes is None:
            if n_genes != len(self.genes_):
                msg = f"X has {n_genes} genes, the imputer was trained on {len(self.genes_)}; pass genes= to align."
                raise ValueError(msg)
            return np.arange(n_genes)
        names = list(map(str, genes))
        if len(names) != n_genes:
            msg = f"genes has {len(names)} names, X has {n_genes} columns."
            raise ValueError(msg)
        for which, listed in (("genes", names), ("the training data", self.genes_)):
            if len(set(listed)) != len(listed):
                twice = sorted({name for name in listed if listed.count(name) > 1})
                msg = f"{which} has duplicate names, which cannot be aligned: {_some(twice)}."
                raise ValueError(msg)
        missing, extra = sorted(set(self.genes_) - set(names)), sorted(set(names) - set(self.genes_))
        if missing or extra:
            parts = [f"missing: {_some(missing)}"] * bool(missing) + [f"not trained on: {_some(extra)}"] * bool(extra)
            msg = f"The genes differ from those of the training data; {'; '.join(parts)}."
            raise ValueError(msg)
        position = {name: index for index, name in enumerate(names)}
        return np.array([position[name] for name in self.genes_])

    def _assign(self, counts: sp.csr_array) -> np.ndarray:
        """Cluster of new cells by correlation with the mean profiles of the training clusters."""
        if len(self.clusters_) == 1:
            return np.zeros(counts.shape[0], dtype=np.int64)
        profiles = self._profiles - self._profiles.mean(axis=1, keepdims=True)
        profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
        # The cell's own mean and length are the same for all clusters: the product with centred profiles decides.
        return np.argmax(_log_normalised(counts) @ profiles.T, axis=1)


def _checked_counts(X: Any) -> sp.csr_array:
    counts = to_csr(X)
    if counts.data.dtype.kind == "f" and not np.isfinite(counts.data).all():
        msg = "X has NaN or infinite values."
        raise ValueError(msg)
    if counts.nnz and counts.data.min() < 0:
        msg = f"X has negative values (smallest {counts.data.min():.3g}); counts are needed."
        raise ValueError(msg)
    return counts


def _codes(clusters: Any, n_cells: int, trained: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Codes of the cells (-1 for none) and names of the clusters: those given, or those trained."""
    if clusters is None:
        return np.zeros(n_cells, dtype=np.int64), ["all"]
    given = pd.Categorical(clusters).remove_unused_categories()
    if len(given) != n_cells:
        msg = f"clusters has {len(given)} labels, X has {n_cells} cells."
        raise ValueError(msg)
    names = [str(name) for name in given.categories]
    if not names:
        msg = "No cell has a cluster."
        raise ValueError(msg)
    if trained is None:
        return given.codes.astype(np.int64), names
    unknown = sorted(set(names) - set(trained))
    if unknown:
        msg = f"clusters {_some(unknown)} are unknown. Trained: {_some(trained)}."
        raise ValueError(msg)
    # The code -1 picks the last element, which stands for no cluster.
    return np.array([*map(trained.index, names), -1])[given.codes], trained


def _dropout_block(dropout: Any, shape: tuple[int, int], order: np.ndarray) -> DropoutBlock:
    """A function of indices of cells and trained genes; `order` maps trained genes to columns."""
    if dropout is None:
        return lambda cells, genes: np.ones((cells.size, genes.size), dtype=np.float32)
    if callable(dropout):
        return lambda cells, genes: dropout(cells, order[genes])
    matrix = dropout.tocsr() if sp.issparse(dropout) else np.asarray(dropout)
    if matrix.shape != shape:
        msg = f"dropout has shape {matrix.shape}, X has {shape}."
        raise ValueError(msg)

    def block(cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
        rows = matrix[cells][:, order[genes]]
        return rows.toarray() if sp.issparse(rows) else rows

    return block


def _log_normalised(counts: sp.csr_array) -> sp.csr_array:
    """log1p of counts per 10,000."""
    totals = np.maximum(counts.sum(axis=1), 1)
    return sp.csr_array(counts.multiply((1e4 / totals)[:, None])).log1p()


def _mean_profile(counts: sp.csr_array) -> np.ndarray:
    return np.asarray(_log_normalised(counts).mean(axis=0)).ravel()


def _fill(X: Any, filled: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Any:
    """A copy of the counts with predicted values at zeros: dense for dense, else CSR of the same kind."""
    dtype = np.result_type(X.dtype, np.float32)
    if not filled:
        filled = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))]
    rows, columns, values = (np.concatenate(parts) for parts in zip(*filled, strict=True))
    if isinstance(X, np.ndarray):
        dense = X.astype(dtype, order="C")
        dense[rows, columns] = values
        return dense
    observed = to_csr(X).astype(dtype)
    total = observed + sp.coo_array((values.astype(dtype), (rows, columns)), shape=X.shape).tocsr()
    return sp.csr_matrix(total) if isinstance(X, sp.spmatrix) else sp.csr_array(total)


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
