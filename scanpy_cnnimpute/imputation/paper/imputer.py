"""The published procedure: one network for each cluster and subset of target genes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from ..._progress import progress_bar
from ..._records import array, array_list
from ...clustering.profiles import codes_of, mean_profiles, nearest_profiles
from ...presets import PaperSettings
from ..backend import set_weights
from ..base import IMPUTED, NO_INPUTS, NOT_SELECTED, TRAINING_FAILED, Imputed, Imputer
from . import inputs
from .plan import plan_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..._counts import Counts
    from ..._finished import FinishedParts
    from ...dropout import Clusters, Dropout
    from ...presets import Settings
    from ..base import FitOptions
    from .architecture import Network
    from .plan import Plan


@dataclass(kw_only=True)
class PaperImputer(Imputer):
    """Predicts the dropouts of each cluster from the genes most correlated with subsets of target genes.

    Attributes
    ----------
    status
        ``(n_genes, n_clusters)`` positions in :data:`STATUSES`.
    profiles
        ``(n_genes, n_clusters)`` mean log1p(CP10k), by which other cells find their cluster.
    names
        ``(n_clusters,)`` names of the clusters.
    network_cluster
        ``(n_networks,)`` position of the cluster of each network.
    targets, inputs
        Of each network, positions of genes.
    weights
        Of each network, one after the other; empty if they were not kept.

    Notes
    -----
    The paper, "CNN-based model construction".
    """

    preset: ClassVar[str] = "paper"
    estimates: ClassVar[tuple[str, ...]] = ("conditional",)
    settings_type: ClassVar[type[Settings]] = PaperSettings
    dropout_model: ClassVar[str] = "gamma_normal"
    is_stored: ClassVar[bool] = False
    trains_in_clusters: ClassVar[bool] = True
    can_gate: ClassVar[bool] = False

    status: np.ndarray = array("i1", "genes", "clusters")
    profiles: np.ndarray = array("f4", "genes", "clusters")
    names: np.ndarray = array("U", "clusters")
    network_cluster: np.ndarray = array("i4", "networks")
    targets: list[np.ndarray] = array_list("i4")
    inputs: list[np.ndarray] = array_list("i4")
    weights: list[np.ndarray] = array_list("f4")
    settings: PaperSettings = field(default_factory=PaperSettings)
    estimate: str = "conditional"
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fit(cls, counts: Counts, dropout: Dropout, options: FitOptions) -> PaperImputer:
        """Train all networks and keep their weights, 44 MB each with the published settings."""
        imputer, predictions = cls._start(counts.load(), dropout, options, keep_weights=True)
        for _ in predictions:
            pass
        return imputer

    @classmethod
    def fit_predict(
        cls,
        counts: Counts,
        dropout: Dropout,
        options: FitOptions,
        *,
        return_std: bool = False,
    ) -> tuple[PaperImputer, Iterator[Imputed]]:
        """Train and predict network by network, so that the weights of one are held at a time."""
        return cls._start(counts.load(), dropout, options, keep_weights=False)

    @classmethod
    def _start(
        cls, counts: sp.csr_array, dropout: Dropout, options: FitOptions, *, keep_weights: bool
    ) -> tuple[PaperImputer, Iterator[Imputed]]:
        clusters, settings = options.clusters, options.settings
        # A cell without counts teaches nothing.
        codes = np.where(np.diff(counts.indptr) > 0, clusters.codes, -1)
        members = [np.flatnonzero(codes == code) for code in range(len(clusters.names))]
        modelled = np.broadcast_to(options.targets.modelled, (counts.shape[1], len(clusters.names)))
        plans = [
            plan_cluster(
                name,
                cells,
                counts,
                dropout,
                modelled[:, position],
                options.targets.selected,
                settings,  # type: ignore[arg-type]
            )
            for position, (name, cells) in enumerate(zip(clusters.names, members, strict=True))
        ]
        status = np.stack([status for _, status in plans], axis=1)
        status[~options.targets.selected] = NOT_SELECTED
        imputer = cls(
            status=status,
            profiles=mean_profiles(counts, codes, len(clusters.names)),
            names=np.array(clusters.names, dtype=str),
            network_cluster=np.empty(0, dtype=np.int32),
            targets=[],
            inputs=[],
            weights=[],
            settings=settings,  # type: ignore[arg-type]
        )
        plan_of = [plan for plan, _ in plans]
        return imputer, imputer._train_all(counts, dropout, members, plan_of, options, keep_weights=keep_weights)

    def _train_all(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        members: list[np.ndarray],
        plans: list[Plan],
        options: FitOptions,
        *,
        keep_weights: bool,
    ) -> Iterator[Imputed]:
        """Train cluster by cluster; yields the cells of each and what its networks predict for them."""
        network: Network | None = None
        total = sum(len(plan.subsets) for plan in plans)
        with progress_bar("Networks", total, unit="networks") as bar:
            for cluster, (cells, plan) in enumerate(zip(members, plans, strict=True)):
                own = counts[cells]
                values = _network_values(own, self.settings)
                by_gene = values.tocsc()
                parts = []
                for number, targets in enumerate(plan.subsets):
                    chosen = inputs.select_inputs(by_gene, targets, plan.candidates, self.settings.n_top)
                    bar.update()
                    if not chosen.size:
                        self.status[targets, cluster] = NO_INPUTS
                        continue
                    missing = inputs.missing_entries(by_gene, cells, targets, dropout, self.settings.threshold)
                    seed = np.random.SeedSequence(options.random_state, spawn_key=(cluster, number))
                    task = values[:, chosen], by_gene[:, targets], missing, self.settings, seed
                    finished = _load(options.checkpoint, task)
                    if finished is None or keep_weights:
                        if network is None:
                            network = _network(self.settings)
                        with network.lock:
                            losses = self._train(network, values, by_gene, targets, chosen, missing, seed)
                            predicted, finite = self._predict(network, values, targets, chosen, missing)
                            weights = network.model.get_weights() if keep_weights else []
                        _keep(options.checkpoint, task, losses, predicted, finite)
                    else:
                        (losses, predicted, finite), weights = finished, []
                    self.status[targets, cluster] = np.where(finite, IMPUTED, TRAINING_FAILED)
                    sizes = {"n_targets": int(targets.size), "n_inputs": int(chosen.size)}
                    self.history.append({"cluster": str(self.names[cluster]), "subset": number, **sizes, **losses})
                    self.network_cluster = np.append(self.network_cluster, np.int32(cluster))
                    self.targets.append(targets.astype(np.int32))
                    self.inputs.append(chosen.astype(np.int32))
                    self.weights += weights
                    parts.append((targets, predicted))
                yield Imputed(cells=cells, counts=own, values=_join(parts, (cells.size, counts.shape[1])))

    def predict(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        *,
        clusters: Clusters | None = None,
        genes: np.ndarray | None = None,
        return_std: bool = False,
    ) -> Iterator[Imputed]:
        """Predict with the networks of each cell's cluster; see :meth:`Imputer.predict`."""
        if clusters is None:
            codes = nearest_profiles(counts, self.profiles)
        else:
            codes = codes_of(clusters.names, self.names.tolist(), clusters.codes)
        n_weights = len(self.weights) // max(len(self.targets), 1)
        network: Network | None = None
        for cluster in np.unique(codes[codes >= 0]):
            cells = np.flatnonzero(codes == cluster)
            own = counts[cells]
            values = _network_values(own, self.settings)
            by_gene = values.tocsc()
            parts = []
            for number in np.flatnonzero(self.network_cluster == cluster):
                targets, chosen = self.targets[number], self.inputs[number]
                if genes is not None and not np.isin(targets, genes).any():
                    continue
                if network is None:
                    network = _network(self.settings)
                missing = inputs.missing_entries(by_gene, cells, targets, dropout, self.settings.threshold)
                if genes is not None:
                    missing &= np.isin(targets, genes)
                with network.lock:
                    set_weights(network.model, self.weights[number * n_weights : (number + 1) * n_weights])
                    parts.append((targets, self._predict(network, values, targets, chosen, missing)[0]))
            yield Imputed(cells=cells, counts=own, values=_join(parts, (cells.size, counts.shape[1])))

    def note_imputed(self, predictions: Iterator[Imputed]) -> Iterator[Imputed]:
        """Pass predictions on: the status is known from the training."""
        return predictions

    def check_consistent(self) -> None:
        """Refuse positions of genes and clusters that are not there; see :meth:`Imputer.check_consistent`."""
        super().check_consistent()
        n_networks = self.network_cluster.size
        if len(self.targets) != n_networks or len(self.inputs) != n_networks:
            msg = f"{n_networks} networks have {len(self.targets)} sets of targets and {len(self.inputs)} of inputs"
            raise ValueError(msg)
        for name, positions, size in (
            ("network_cluster", self.network_cluster, self.names.size),
            *(("targets", each, self.status.shape[0]) for each in self.targets),
            *(("inputs", each, self.status.shape[0]) for each in self.inputs),
        ):
            if positions.ndim != 1 or positions.min(initial=0) < 0 or positions.max(initial=0) >= max(size, 1):
                msg = f"the array {name!r} has positions outside 0 to {size - 1}"
                raise ValueError(msg)

    def _train(
        self,
        network: Network,
        values: sp.csr_array,
        by_gene: sp.csc_array,
        targets: np.ndarray,
        chosen: np.ndarray,
        missing: np.ndarray,
        seed: np.random.SeedSequence,
    ) -> dict[str, list[float]]:
        from .architecture import MASK
        from .training import train

        answers = by_gene[:, targets].toarray()
        answers[missing] = MASK
        return train(network, values[:, chosen], answers, self.settings, seed)

    def _predict(
        self, network: Network, values: sp.csr_array, targets: np.ndarray, chosen: np.ndarray, missing: np.ndarray
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Predicted counts of the missing entries (cells x targets), and which targets were predicted finitely."""
        from .training import predict

        predicted = predict(network.model, values[:, chosen], self.settings)[:, : targets.size]
        # A network that runs away gives infinite counts: such genes stay as they are.
        with np.errstate(over="ignore"):
            predicted = np.maximum(np.expm1(predicted) if self.settings.log else predicted, 0.0)
        finite = np.isfinite(predicted).all(axis=0)
        return sp.csr_array(np.where(missing & finite, predicted, np.float32(0))), finite


def _part_name(task: tuple[Any, ...]) -> str:
    """Name of a finished network, which what it was trained on, its settings and its seed make unique."""
    values, answers, missing, settings, seed = task
    digest = hashlib.blake2b(repr((settings, seed.entropy, seed.spawn_key, values.shape)).encode(), digest_size=16)
    for matrix in (values, answers):
        for part in (matrix.data, matrix.indices, matrix.indptr):
            digest.update(np.ascontiguousarray(part).data)
    digest.update(np.packbits(missing).data)
    return f"network-{digest.hexdigest()}.npz"


def _keep(
    checkpoint: FinishedParts | None,
    task: tuple[Any, ...],
    losses: dict[str, list[float]],
    predicted: sp.csr_array,
    finite: np.ndarray,
) -> None:
    """Keep what a trained network gives, if a checkpoint is asked for."""
    if checkpoint is not None:
        entries = {name: getattr(predicted, name) for name in ("data", "indices", "indptr")}
        checkpoint.save(_part_name(task), {**losses, **entries, "finite": finite})


def _load(
    checkpoint: FinishedParts | None, task: tuple[Any, ...]
) -> tuple[dict[str, list[float]], sp.csr_array, np.ndarray] | None:
    """Losses, predictions and which targets are finite, if this network is finished."""
    arrays = None if checkpoint is None else checkpoint.load(_part_name(task))
    if arrays is None:
        return None
    finite = arrays.pop("finite")
    entries = tuple(arrays.pop(name) for name in ("data", "indices", "indptr"))
    predicted = sp.csr_array(entries, shape=(task[2].shape[0], finite.size))
    return {name: value.tolist() for name, value in arrays.items()}, predicted, finite


def _network(settings: PaperSettings) -> Network:
    from .architecture import shared_network

    return shared_network(settings)


def _network_values(counts: sp.csr_array, settings: PaperSettings) -> sp.csr_array:
    """What the networks see: log1p(counts), or counts, float32."""
    values = counts.astype(np.float32)
    return values.log1p() if settings.log else values


def _join(parts: list[tuple[np.ndarray, sp.csr_array]], shape: tuple[int, int]) -> sp.csr_array:
    """Predictions of several subsets of genes as one CSR array over all genes."""
    if not parts:
        return sp.csr_array(shape, dtype=np.float32)
    genes = np.concatenate([targets for targets, _ in parts])
    joined = sp.hstack([predicted for _, predicted in parts], format="csr")
    everywhere = sp.csr_array((joined.data, genes[joined.indices], joined.indptr), shape=shape)
    everywhere.sort_indices()
    return everywhere
