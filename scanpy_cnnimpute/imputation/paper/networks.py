"""The paper's networks: one for each cluster and subset of target genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from . import inputs as _inputs
from .plan import IMPUTED, NO_INPUTS, TRAINING_FAILED, Plan, Task, plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tqdm import tqdm

    from ...presets import NetworkSettings
    from ..arrays import Predicted
    from .architecture import Network
    from .inputs import DropoutBlock


class PublishedNetworks:
    """Plan, train and predict, cluster by cluster and subset by subset.

    Parameters
    ----------
    settings
        Of the preset.
    random_state
        Seed; every network draws from a stream of its own.
    keep_models
        Keep the weights of the networks.
    """

    def __init__(self, settings: NetworkSettings, random_state: int, *, keep_models: bool) -> None:
        self.settings = settings
        self.random_state = random_state
        self.keep_models = keep_models
        self.tasks: list[Task] = []
        self.history: list[dict[str, Any]] = []

    def fit_fill(
        self,
        counts: sp.csr_array,
        codes: np.ndarray,
        names: list[str],
        trusted: list[np.ndarray],
        block: DropoutBlock,
        *,
        verbose: bool,
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Plan and train all networks; yields the cells of each cluster and what its networks predict for them."""
        from tqdm.auto import tqdm

        members = [np.flatnonzero(codes == cluster) for cluster in range(len(names))]
        plans = [
            plan(name, cells, counts, block, known, self.settings)
            for name, cells, known in zip(names, members, trusted, strict=True)
        ]
        self.names = names
        self.status = np.stack([status for _, status in plans], axis=1)
        self.tasks, self.history = [], []
        total = sum(len(planned.subsets) for planned, _ in plans)
        with tqdm(total=total, desc="cnnImpute networks", unit="network", disable=None if verbose else True) as bar:
            network: Network | None = None
            for cluster, (planned, _) in enumerate(plans):
                if planned.subsets and network is None:
                    from .architecture import Network

                    network = Network(self.settings)
                cells = members[cluster]
                yield cells, self._run_cluster(cluster, cells, counts, planned, block, network, bar)

    def fill(
        self, counts: sp.csr_array, codes: np.ndarray, block: DropoutBlock
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Predict the missing entries of cells that have a cluster; yields as :meth:`fit_fill`."""
        from .architecture import Network

        network = Network(self.settings) if self.tasks else None
        for cluster in np.unique(codes[codes >= 0]):
            cells = np.flatnonzero(codes == cluster)
            values = self._values(counts[cells])
            by_gene = values.tocsc()
            found = []
            for task in self.tasks:
                if network is None or task.cluster != cluster:
                    continue
                network.model.set_weights(task.weights)
                missing = _inputs.missing_entries(by_gene, cells, task.targets, block, self.settings.threshold)
                predicted, _ = self._predict(network, task, values, missing)
                found.append((task.targets, predicted))
            yield cells, found

    def save(self, folder: Path) -> list[dict[str, Any]]:
        """Write the networks into a folder; returns what to tell :meth:`load`."""
        from .architecture import build_network

        model = build_network(self.settings)
        networks = []
        for task in self.tasks:
            file = f"cluster{task.cluster:03d}_subset{task.subset:04d}.keras"
            model.set_weights(task.weights)
            model.save(folder / file, include_optimizer=False)
            genes = {"targets": task.targets.tolist(), "inputs": task.inputs.tolist()}
            networks.append({"file": file, "cluster": task.cluster, "subset": task.subset, **genes})
        return networks

    def load(self, folder: Path, networks: list[dict[str, Any]]) -> None:
        """Read what :meth:`save` wrote."""
        from keras.saving import load_model

        self.tasks = [
            Task(
                cluster=entry["cluster"],
                subset=entry["subset"],
                targets=np.array(entry["targets"], dtype=np.int64),
                inputs=np.array(entry["inputs"], dtype=np.int64),
                weights=load_model(folder / entry["file"], compile=False).get_weights(),
            )
            for entry in networks
        ]

    def _run_cluster(
        self,
        cluster: int,
        cells: np.ndarray,
        counts: sp.csr_array,
        planned: Plan,
        block: DropoutBlock,
        network: Network | None,
        bar: tqdm[Any],
    ) -> list[Predicted]:
        """Train the networks of a cluster one after the other; returns what they predict."""
        values = self._values(counts[cells])
        by_gene = values.tocsc()
        found = []
        for number, targets in enumerate(planned.subsets):
            inputs = _inputs.select_inputs(by_gene, targets, planned.candidates, self.settings.n_top)
            if network is None or not inputs.size:
                self.status[targets, cluster] = NO_INPUTS
                bar.update()
                continue
            task = Task(cluster=cluster, subset=number, targets=targets, inputs=inputs)
            missing = _inputs.missing_entries(by_gene, cells, targets, block, self.settings.threshold)
            losses = self._train(network, task, values, by_gene, missing)
            predicted, finite = self._predict(network, task, values, missing)
            self.status[targets, cluster] = np.where(finite, IMPUTED, TRAINING_FAILED)
            sizes = {"n_targets": int(targets.size), "n_inputs": int(inputs.size)}
            self.history.append({"cluster": self.names[cluster], "subset": number, **sizes, **losses})
            if self.keep_models:
                task.weights = network.model.get_weights()
            self.tasks.append(task)
            found.append((targets, predicted))
            bar.update()
        return found

    def _train(
        self, network: Network, task: Task, values: sp.csr_array, by_gene: sp.csc_array, missing: np.ndarray
    ) -> dict[str, list[float]]:
        from .architecture import MASK
        from .training import train

        targets = by_gene[:, task.targets].toarray()
        targets[missing] = MASK
        seed = np.random.SeedSequence(self.random_state, spawn_key=(task.cluster, task.subset))
        return train(network, values[:, task.inputs], targets, self.settings, seed)

    def _predict(
        self, network: Network, task: Task, values: sp.csr_array, missing: np.ndarray
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Predicted counts of the missing entries (cells x targets), and which targets were predicted finitely."""
        from .training import predict

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
