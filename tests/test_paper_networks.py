"""The published networks: input genes, architecture, training, and what they recover."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import keras
import numba
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import QUICK, simulate

from scanpy_cnnimpute import CNNImputer
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout import AllMissing, Clusters
from scanpy_cnnimpute.imputation import STATUSES, FitOptions, Targets
from scanpy_cnnimpute.imputation.optimizer import FusedAdam
from scanpy_cnnimpute.imputation.paper import PaperImputer, architecture, inputs, training
from scanpy_cnnimpute.presets import PaperSettings

SMALL = PaperSettings(n_targets=8, max_epochs=3)


@pytest.fixture
def counts() -> sp.csr_matrix:
    return simulate().X


def test_inputs_are_the_most_correlated_genes_outside_the_subset(counts: sp.csr_matrix) -> None:
    values = sp.csc_array(counts.log1p())
    targets, candidates = np.arange(5, 15), np.arange(0, 50, 2)
    chosen = inputs.select_inputs(values, targets, candidates, 3)
    correlation = np.corrcoef(values.toarray().T)
    allowed = [gene for gene in candidates if gene not in targets]
    expected: list[int] = []
    for target in targets:
        expected += sorted(allowed, key=lambda gene: -correlation[target, gene])[:3]
    assert chosen.tolist() == list(dict.fromkeys(expected))
    assert not set(chosen) & set(targets)


def test_inputs_do_not_depend_on_blocks_or_threads(counts: sp.csr_matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sp.csc_array(counts.log1p())
    arguments = (values, np.arange(10), np.arange(50), 4)
    expected = inputs.select_inputs(*arguments)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(inputs.select_inputs(*arguments), expected)
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 8 * 60 * 7)
    np.testing.assert_array_equal(inputs.select_inputs(*arguments), expected)
    assert max(block.size for block in inputs.gene_blocks(np.arange(50), 60)) == 7


def test_equal_correlations_go_to_the_first_gene() -> None:
    column = np.random.default_rng(0).poisson(3.0, size=30)
    values = sp.csc_array(np.c_[column, column, column, column].astype(np.float32))
    assert inputs.select_inputs(values, np.array([2]), np.array([3, 1, 0]), 2).tolist() == [0, 1]


def test_published_architecture() -> None:
    model = architecture.build_network(PaperSettings())
    assert model.count_params() == 10_979_792
    assert model.input_shape == (None, 2560, 1)
    assert model.output_shape == (None, 512)
    kinds = [type(layer).__name__ for layer in model.layers][1:]
    block = ["Conv1D", "MaxPooling1D", "BatchNormalization"]
    assert kinds == [*block, *block, "Flatten", "Dropout", "Dense", "Dense"]
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)


def test_masked_targets_take_no_part_in_the_loss() -> None:
    from keras.ops import convert_to_tensor

    true = convert_to_tensor([[1.0, -1.0], [0.0, 3.0]])
    predicted = convert_to_tensor([[2.0, 99.0], [0.0, 1.0]])
    assert float(architecture.masked_mse(true, predicted)) == pytest.approx((1 + 0 + 4) / 3)
    assert float(architecture.masked_mse(convert_to_tensor([[-1.0, -1.0]] * 2), predicted)) == 0


def training_data(n: int = 40) -> tuple[sp.csr_array, np.ndarray]:
    rng = np.random.default_rng(0)
    return sp.csr_array(rng.random((n, 12), dtype=np.float32)), rng.random((n, 5), dtype=np.float32)


def train(network: architecture.Network, seed: int, settings: PaperSettings = SMALL) -> tuple[Any, np.ndarray]:
    values, targets = training_data()
    history = training.train(network, values, targets, settings, np.random.SeedSequence(seed))
    return history, training.predict(network.model, values, settings)


def test_a_network_used_again_forgets_what_it_learnt() -> None:
    network = architecture.Network(SMALL)
    first = train(network, 1)
    train(network, 2)
    again = train(network, 1)
    fresh = train(architecture.Network(SMALL), 1)
    for other in (again, fresh):
        assert other[0] == first[0]
        np.testing.assert_array_equal(other[1], first[1])


def test_global_random_state_is_left_alone() -> None:
    import random

    keras.utils.set_random_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(architecture.Network(SMALL), 1)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_training_equals_keras_fit() -> None:
    # One batch per epoch: the order of the cells does not matter, dropout is off for the comparison.
    settings = PaperSettings(n_targets=8, max_epochs=4, batch_size=64, learning_rate=1e-2)
    network = architecture.Network(settings)
    for layer in network.model.layers:
        if "dropout" in layer.name:
            layer.rate = 0.0
    values, targets = training_data()
    seed = np.random.SeedSequence(5)
    history = training.train(network, values, targets, settings, seed)

    # Keras' own loop with Keras' own optimizer, in place of ours.
    network.model.compile(keras.optimizers.Adam(1e-2), loss=architecture.masked_mse, jit_compile=False)
    network.model.optimizer.build(network.model.trainable_variables)
    rng = np.random.default_rng(seed)
    network.reinitialise(rng)
    cells = rng.permutation(40)
    x = np.zeros((40, 40, 1), np.float32)
    x[:, :12, 0] = values.toarray()
    y = np.full((40, 8), -1.0, np.float32)
    y[:, :5] = targets
    fitted = network.model.fit(
        x[cells[4:]], y[cells[4:]], validation_data=(x[cells[:4]], y[cells[:4]]), epochs=4, batch_size=64, verbose=0
    ).history
    np.testing.assert_allclose(history["loss"], fitted["loss"], rtol=1e-4)
    np.testing.assert_allclose(history["val_loss"], fitted["val_loss"], rtol=1e-4)


def test_fused_adam_is_adamw() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True) + 1

    def trained(optimizer: type[keras.optimizers.Optimizer]) -> list[np.ndarray]:
        model = keras.Sequential(
            [
                keras.layers.Input((8,)),
                keras.layers.Dense(16, activation="relu", kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
                keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
            ]
        )
        rate = keras.optimizers.schedules.CosineDecay(0.01, 50)
        model.compile(optimizer(rate, weight_decay=0.1, clipnorm=0.5), loss="mse", jit_compile=False)
        for _ in range(20):
            model.train_on_batch(x, y)
        return model.get_weights()

    for ours, theirs in zip(trained(FusedAdam), trained(keras.optimizers.AdamW), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_its_cells() -> None:
    # Nothing moves: each batch has the loss that it has alone, and the last is smaller than the others.
    settings = PaperSettings(n_targets=8, max_epochs=1, batch_size=16, learning_rate=1e-30)
    network = architecture.Network(settings)
    values, targets = training_data()
    seen = []
    step = network.model.train_on_batch

    def watched(x: np.ndarray, y: np.ndarray) -> float:
        seen.append((len(x), float(step(x, y))))
        return seen[-1][1]

    network.model.train_on_batch = watched
    history = training.train(network, values, targets, settings, np.random.SeedSequence(5))
    assert [size for size, _ in seen] == [16, 16, 4]
    assert history["loss"] == [pytest.approx(np.average([loss for _, loss in seen], weights=[n for n, _ in seen]))]
    assert len({loss for _, loss in seen}) == 3


def test_training_stops_when_the_validation_loss_does() -> None:
    settings = PaperSettings(n_targets=8, max_epochs=200, patience=2, learning_rate=3e-2)
    history, _ = train(architecture.Network(settings), 0, settings)
    losses = history["val_loss"]
    assert len(losses) < 200
    assert min(losses) == losses[-3]
    assert min(losses[-2:]) >= losses[-3]


def test_weights_start_as_glorot_uniform() -> None:
    network = architecture.Network(PaperSettings())
    network.reinitialise(np.random.default_rng(0))
    kernel = np.asarray(network.model.layers[-1].kernel)
    limit = np.sqrt(6 / (1024 + 512))
    assert np.abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=1e-2)
    assert abs(kernel.mean()) < 5 * limit / np.sqrt(3) / np.sqrt(kernel.size)


def planted(n_cells: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Counts in which two programmes decide every gene, and which non-zeros were hidden."""
    rng = np.random.default_rng(0)
    activity = rng.gamma(2.0, 0.5, size=(n_cells, 2))
    counts = rng.poisson(40 * activity[:, np.arange(40) % 2]) + 1.0
    hidden = rng.random(counts.shape) < 0.2
    hidden[:, 20:] = False  # those are the inputs
    return counts, hidden


def test_recovers_planted_values_better_than_the_gene_mean() -> None:
    counts, hidden = planted()
    observed = np.where(hidden, 0.0, counts)
    imputer = CNNImputer(preset="paper", n_targets=20, max_dropout=0, learning_rate=1e-3, max_epochs=60, verbose=False)
    imputed = imputer.fit_transform(observed, dropout=hidden.astype(float))
    means = np.broadcast_to(observed.sum(axis=0) / (observed > 0).sum(axis=0), counts.shape)
    error = np.mean((np.log1p(imputed[hidden]) - np.log1p(counts[hidden])) ** 2)
    baseline = np.mean((np.log1p(means[hidden]) - np.log1p(counts[hidden])) ** 2)
    assert error < 0.5 * baseline
    assert np.corrcoef(imputed[hidden], counts[hidden])[0, 1] > 0.7


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_some_cells_are_left_for_training_and_validation(fraction: float) -> None:
    settings = PaperSettings(n_targets=8, max_epochs=1, validation_fraction=fraction)
    history, _ = train(architecture.Network(settings), 0, settings)
    assert np.isfinite([history["loss"], history["val_loss"]]).all()


def targets(n_genes: int, **given: np.ndarray) -> Targets:
    """All genes, but for what is given."""
    everything = {
        "selected": np.ones(n_genes, dtype=bool),
        "no_gain": np.zeros(n_genes, dtype=bool),
        "modelled": np.ones((n_genes, 1), dtype=bool),
    }
    return Targets(**everything | given)


def run(counts: Any, clusters: Clusters, **options: Any) -> tuple[PaperImputer, np.ndarray]:
    """Train on all zeros and predict them; the counts with their predictions."""
    matrix = sp.csr_array(counts)
    n_genes = matrix.shape[1]
    defaults = {
        "settings": PaperSettings(n_targets=16, max_epochs=3, max_dropout=1),
        "estimate": "conditional",
        "random_state": 0,
        "targets": targets(n_genes),
        "clusters": clusters,
    }
    imputer, parts = PaperImputer.fit_predict(Counts.of(matrix), AllMissing(n_genes), FitOptions(**defaults | options))
    values = matrix.toarray().astype(np.float32)
    for part in parts:
        values[part.cells] += part.values.toarray()
    assert isinstance(imputer, PaperImputer)
    return imputer, values


def types(adata: Any) -> Clusters:
    return Clusters(codes=adata.obs["type"].cat.codes.to_numpy(np.int64), names=["a", "b"])


def test_genes_that_are_not_modelled_take_no_part() -> None:
    adata = simulate()
    mask = np.arange(50) >= 10
    imputer, imputed = run(adata.X, types(adata), targets=targets(50, modelled=mask[:, None]))
    np.testing.assert_array_equal(imputed[:, ~mask], adata.X.toarray()[:, ~mask])
    assert set(np.array(STATUSES)[imputer.status[~mask]].ravel()) == {"not modelled"}
    read = np.concatenate(imputer.inputs)
    assert mask[read].all()
    # In one cluster alone.
    both = np.column_stack([np.ones(50, dtype=bool), mask])
    imputer, imputed = run(adata.X, types(adata), targets=targets(50, modelled=both))
    assert set(np.array(STATUSES)[imputer.status[~mask, 1]]) == {"not modelled"}
    assert "not modelled" not in set(np.array(STATUSES)[imputer.status[:, 0]])
    own = imputer.network_cluster == 1
    read = np.concatenate([genes for genes, used in zip(imputer.inputs, own, strict=True) if used])
    assert mask[read].all()


def test_genes_that_are_not_selected_are_inputs_only() -> None:
    adata = simulate()
    selected = np.arange(50) % 3 == 0
    imputer, imputed = run(adata.X, types(adata), targets=targets(50, selected=selected))
    np.testing.assert_array_equal(imputed[:, ~selected], adata.X.toarray()[:, ~selected])
    assert set(np.array(STATUSES)[imputer.status[~selected]].ravel()) == {"not selected"}
    assert selected[np.concatenate(imputer.targets)].all()
    assert not selected[np.concatenate(imputer.inputs)].all()


def test_fit_predict_keeps_no_weights_and_gives_what_fit_and_predict_give() -> None:
    adata = simulate()
    counts = sp.csr_array(adata.X)
    streaming, expected = run(counts, types(adata))
    assert streaming.weights == []
    options = FitOptions(
        settings=PaperSettings(n_targets=16, max_epochs=3, max_dropout=1),
        estimate="conditional",
        random_state=0,
        targets=targets(50),
        clusters=types(adata),
    )
    kept = PaperImputer.fit(Counts.of(counts), AllMissing(50), options)
    assert len(kept.weights) % len(kept.targets) == 0
    values = counts.toarray()
    for part in kept.predict(counts, AllMissing(50), clusters=types(adata)):
        values[part.cells] += part.values.toarray()
    np.testing.assert_array_equal(values, expected)
    assert kept.history == streaming.history
    # Some genes, from the networks that predict them.
    genes = np.array([3, 30])
    some = counts.toarray()
    for part in kept.predict(counts, AllMissing(50), clusters=types(adata), genes=genes):
        some[part.cells] += part.values.toarray()
    np.testing.assert_array_equal(some[:, genes], expected[:, genes])
    others = np.setdiff1d(np.arange(50), genes)
    np.testing.assert_array_equal(some[:, others], adata.X.toarray()[:, others])


def test_status_of_what_cannot_be_predicted() -> None:
    counts = simulate(60).X.toarray()
    counts[:, 0] = 0
    clusters = np.array(["small"] * 9 + ["large"] * 51)
    imputer = CNNImputer(**QUICK, max_dropout=0.9)
    imputed = imputer.fit_transform(counts, clusters=clusters, dropout=np.ones(counts.shape))
    status = np.array(STATUSES)[imputer.status_]
    assert imputer.clusters_ == ["large", "small"]
    assert status[0, 0] == "not modelled"
    assert set(status[:, 1]) == {"too few cells"}
    np.testing.assert_array_equal(imputed[:9], counts[:9])
    # Every gene a target of the one subset: there is none left to predict from.
    alone = CNNImputer(preset="paper", n_targets=64, max_epochs=1, verbose=False)
    holes = np.where(np.eye(60)[:, :50] > 0, 0.0, counts + 1.0)
    everything = np.ones(holes.shape)
    np.testing.assert_array_equal(alone.fit_transform(holes, dropout=everything), holes)
    assert set(np.array(STATUSES)[alone.status_].ravel()) == {"no input genes"}
    assert alone.history_ == []
    np.testing.assert_array_equal(alone.transform(holes), holes)


def test_a_network_that_runs_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = simulate().X.toarray()

    def infinite(model: Any, inputs: Any, settings: PaperSettings) -> np.ndarray:
        return np.full((inputs.shape[0], settings.n_targets), 1e9, np.float32)

    monkeypatch.setattr(training, "predict", infinite)
    imputer = CNNImputer(**QUICK, max_dropout=1)
    np.testing.assert_array_equal(imputer.fit_transform(counts, dropout=np.ones(counts.shape)), counts)
    assert set(np.array(STATUSES)[imputer.status_].ravel()) == {"training failed", "nothing missing"}


def test_settings() -> None:
    overrides = {"n_top": np.int64(3), "threshold": 0, "log": None}
    assert PaperSettings.from_overrides(overrides) == PaperSettings(n_top=3, threshold=0)
    assert type(PaperSettings.from_overrides(overrides).n_top) is int
    with pytest.raises(ValueError, match=r"preset='fast' is not known. Available: \['default', 'paper'\]"):
        CNNImputer(preset="fast")
    with pytest.raises(TypeError, match="n_targets='512' has type str, expected int"):
        CNNImputer(preset="paper", n_targets="512")
    with pytest.raises(TypeError, match="n_top=True has type bool, expected int"):
        CNNImputer(preset="paper", n_top=True)
    for name, value in {
        "threshold": 1.0,
        "n_targets": 0,
        "max_dropout": 1.1,
        "learning_rate": 0.0,
        "batch_size": 0,
        "max_epochs": 0,
        "patience": -1,
        "validation_fraction": 1.0,
    }.items():
        with pytest.raises(ValueError, match=f"{name}={value} is not allowed"):
            PaperSettings.from_overrides({name: value})


def test_paper_preset_is_the_paper() -> None:
    assert PaperSettings().as_dict() == {
        "threshold": 0.5,
        "n_targets": 512,
        "n_top": 5,
        "max_dropout": 0.5,
        "log": True,
        "learning_rate": 1e-4,
        "batch_size": 32,
        "max_epochs": 150,
        "patience": 5,
        "validation_fraction": 0.1,
    }


def test_importing_the_network_loads_no_keras() -> None:
    code = "import sys, scanpy_cnnimpute.imputation; print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"]
