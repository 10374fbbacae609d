"""Input genes, the network, its training, and the estimator."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import keras
import numba
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import QUICK, dense, simulate
from scanpy_cnnimpute.imputation.adam import FusedAdam

from scanpy_cnnimpute import CNNImputer, _matrix
from scanpy_cnnimpute.imputation import STATUSES, _inputs, _model, _training
from scanpy_cnnimpute.presets import PRESETS, NetworkSettings, resolve

SMALL = NetworkSettings(n_targets=8, max_epochs=3)


@pytest.fixture
def counts() -> sp.csr_matrix:
    return simulate().X


def test_inputs_are_the_most_correlated_genes_outside_the_subset(counts: sp.csr_matrix) -> None:
    values = sp.csc_array(counts.log1p())
    targets, candidates = np.arange(5, 15), np.arange(0, 50, 2)
    inputs = _inputs.select_inputs(values, targets, candidates, 3)
    correlation = np.corrcoef(values.toarray().T)
    allowed = [gene for gene in candidates if gene not in targets]
    expected: list[int] = []
    for target in targets:
        expected += sorted(allowed, key=lambda gene: -correlation[target, gene])[:3]
    assert inputs.tolist() == list(dict.fromkeys(expected))
    assert not set(inputs) & set(targets)


def test_inputs_do_not_depend_on_blocks_or_threads(counts: sp.csr_matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sp.csc_array(counts.log1p())
    arguments = (values, np.arange(10), np.arange(50), 4)
    expected = _inputs.select_inputs(*arguments)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(_inputs.select_inputs(*arguments), expected)
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(_inputs, "BLOCK_BYTES", 8 * 60 * 7)
    np.testing.assert_array_equal(_inputs.select_inputs(*arguments), expected)
    assert max(block.size for block in _inputs.gene_blocks(np.arange(50), 60)) == 7


def test_equal_correlations_go_to_the_first_gene() -> None:
    column = np.random.default_rng(0).poisson(3.0, size=30)
    values = sp.csc_array(np.c_[column, column, column, column].astype(np.float32))
    assert _inputs.select_inputs(values, np.array([2]), np.array([3, 1, 0]), 2).tolist() == [0, 1]


def test_published_architecture() -> None:
    model = _model.build_network(PRESETS["paper"])
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
    assert float(_model.masked_mse(true, predicted)) == pytest.approx((1 + 0 + 4) / 3)
    assert float(_model.masked_mse(convert_to_tensor([[-1.0, -1.0]] * 2), predicted)) == 0


def training_data(n: int = 40) -> tuple[sp.csr_array, np.ndarray]:
    rng = np.random.default_rng(0)
    return sp.csr_array(rng.random((n, 12), dtype=np.float32)), rng.random((n, 5), dtype=np.float32)


def train(network: _model.Network, seed: int, settings: NetworkSettings = SMALL) -> tuple[Any, np.ndarray]:
    inputs, targets = training_data()
    history = _training.train(network, inputs, targets, settings, np.random.SeedSequence(seed))
    return history, _training.predict(network.model, inputs, settings)


def test_a_network_used_again_forgets_what_it_learnt() -> None:
    network = _model.Network(SMALL)
    first = train(network, 1)
    train(network, 2)
    again = train(network, 1)
    fresh = train(_model.Network(SMALL), 1)
    for other in (again, fresh):
        assert other[0] == first[0]
        np.testing.assert_array_equal(other[1], first[1])


def test_global_random_state_is_left_alone() -> None:
    import random

    import keras

    keras.utils.set_random_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(_model.Network(SMALL), 1)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_training_equals_keras_fit() -> None:
    # One batch per epoch: the order of the cells does not matter, dropout is off for the comparison.
    settings = NetworkSettings(n_targets=8, max_epochs=4, batch_size=64, learning_rate=1e-2)
    network = _model.Network(settings)
    for layer in network.model.layers:
        if "dropout" in layer.name:
            layer.rate = 0.0
    inputs, targets = training_data()
    seed = np.random.SeedSequence(5)
    history = _training.train(network, inputs, targets, settings, seed)

    # Keras' own loop with Keras' own optimizer, in place of ours.
    network.model.compile(keras.optimizers.Adam(1e-2), loss=_model.masked_mse, jit_compile=False)
    network.model.optimizer.build(network.model.trainable_variables)
    rng = np.random.default_rng(seed)
    network.reinitialise(rng)
    cells = rng.permutation(40)
    x = np.zeros((40, 40, 1), np.float32)
    x[:, :12, 0] = inputs.toarray()
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
    settings = NetworkSettings(n_targets=8, max_epochs=1, batch_size=16, learning_rate=1e-30)
    network = _model.Network(settings)
    inputs, targets = training_data()
    seen = []
    step = network.model.train_on_batch

    def watched(x: np.ndarray, y: np.ndarray) -> float:
        seen.append((len(x), float(step(x, y))))
        return seen[-1][1]

    network.model.train_on_batch = watched
    history = _training.train(network, inputs, targets, settings, np.random.SeedSequence(5))
    assert [size for size, _ in seen] == [16, 16, 4]
    assert history["loss"] == [pytest.approx(np.average([loss for _, loss in seen], weights=[n for n, _ in seen]))]
    assert len({loss for _, loss in seen}) == 3


def test_training_stops_when_the_validation_loss_does() -> None:
    settings = NetworkSettings(n_targets=8, max_epochs=200, patience=2, learning_rate=3e-2)
    history, _ = train(_model.Network(settings), 0, settings)
    losses = history["val_loss"]
    assert len(losses) < 200
    assert min(losses) == losses[-3]
    assert min(losses[-2:]) >= losses[-3]


def test_weights_start_as_glorot_uniform() -> None:
    network = _model.Network(PRESETS["paper"])
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


@pytest.fixture(scope="module")
def fitted() -> CNNImputer:
    adata = simulate()
    return CNNImputer(**QUICK, max_dropout=1).fit(adata.X, clusters=adata.obs["type"], genes=adata.var_names)


def test_fit_transform_equals_fit_and_transform(fitted: CNNImputer) -> None:
    adata = simulate()
    once = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X, clusters=adata.obs["type"])
    twice = fitted.transform(adata.X, clusters=adata.obs["type"])
    np.testing.assert_array_equal(once.toarray(), twice.toarray())
    assert isinstance(once, sp.csr_matrix)


def test_new_cells_with_genes_in_another_order(fitted: CNNImputer) -> None:
    new = simulate(25, seed=1)
    expected = fitted.transform(new.X, genes=new.var_names, clusters=new.obs["type"])
    order = np.random.default_rng(0).permutation(50)
    shuffled = fitted.transform(new.X[:, order], genes=new.var_names[order], clusters=new.obs["type"])
    np.testing.assert_array_equal(shuffled.toarray(), expected.toarray()[:, order])
    observed = new.X.toarray() > 0
    np.testing.assert_array_equal(expected.toarray()[observed], new.X.toarray()[observed])
    assert expected.nnz > new.X.nnz


def test_new_cells_find_their_cluster(fitted: CNNImputer) -> None:
    new = simulate(40, seed=2)
    assigned = fitted.transform(new.X)
    told = fitted.transform(new.X, clusters=new.obs["type"])
    same = (assigned.toarray() == told.toarray()).all(axis=1)
    assert same.mean() > 0.9


def test_cells_without_cluster_stay_as_they_are(fitted: CNNImputer) -> None:
    new = simulate(6)
    result = fitted.transform(new.X, clusters=["a", None, "b", None, "a", None]).toarray()
    np.testing.assert_array_equal(result[1::2], new.X.toarray()[1::2])
    assert (result[::2] > 0).sum() > (new.X[::2] > 0).sum()


def test_cells_without_counts_stay_empty(fitted: CNNImputer) -> None:
    new = simulate(6).X.toarray()
    new[2] = 0
    assert not fitted.transform(new)[2].any()
    np.testing.assert_array_equal(fitted.transform(new, clusters=[None] * 6), new)


def test_a_cluster_of_empty_cells() -> None:
    counts = simulate(30).X.toarray()
    counts[:3] = 0
    imputer = CNNImputer(**QUICK, max_dropout=1).fit(counts, clusters=["empty"] * 3 + ["full"] * 27)
    assert set(np.array(STATUSES)[imputer.status_[:, 0]]) == {"too few cells"}
    # New cells go to the one that has a profile.
    assert (imputer.transform(counts)[3:] > 0).sum() > (counts > 0).sum()


def test_labels_that_read_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Different clusters have the same name as text: \['1'\]"):
        CNNImputer(**QUICK).fit(simulate(4).X, clusters=[1, "1", 1, "1"])


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_some_cells_are_left_for_training_and_validation(fraction: float) -> None:
    settings = NetworkSettings(n_targets=8, max_epochs=1, validation_fraction=fraction)
    history, _ = train(_model.Network(settings), 0, settings)
    assert np.isfinite([history["loss"], history["val_loss"]]).all()


def test_results_are_put_together_alike_dense_and_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate()
    run = {"clusters": adata.obs["type"].where(np.arange(adata.n_obs) % 7 > 0)}  # some cells have none
    sparse = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X, **run)
    assert sparse.has_canonical_format
    assert (sparse.data > 0).all()
    monkeypatch.setattr(_matrix, "BLOCK_BYTES", 4 * 50 * 7)
    dense = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X.toarray(), **run)
    np.testing.assert_array_equal(dense, sparse.toarray())
    assert (dense > 0).sum() > adata.X.nnz


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dense_counts_as_scipy_reads_them(monkeypatch: pytest.MonkeyPatch, dtype: Any, order: Any) -> None:
    monkeypatch.setattr(_matrix, "BLOCK_BYTES", 200)
    counts = np.random.default_rng(0).poisson(0.3, size=(23, 7)).astype(dtype, order=order)
    for matrix in (counts, counts[:, ::2], counts[:0], counts[:, :0], np.zeros_like(counts)):
        found, expected = _matrix.to_csr(matrix), sp.csr_array(matrix)
        assert found.has_canonical_format
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
            assert getattr(found, part).dtype == getattr(expected, part).dtype


def test_save_and_load(fitted: CNNImputer, tmp_path: Any) -> None:
    path = tmp_path / "deep" / "imputer"
    fitted.save(path)
    files = sorted(file.name for file in path.iterdir())
    assert files.count("imputer.json") == 1
    assert sum(name.endswith(".keras") for name in files) == len(fitted.history_) == len(files) - 1
    new = simulate(20, seed=3)
    loaded = CNNImputer.load(path)
    np.testing.assert_array_equal(loaded.transform(new.X).toarray(), fitted.transform(new.X).toarray())
    assert loaded.settings == fitted.settings
    assert loaded.genes_ == fitted.genes_
    assert loaded.history_ == fitted.history_
    np.testing.assert_array_equal(loaded.status_, fitted.status_)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted.save(path)
    fitted.save(path, overwrite=True)
    # Nothing temporary is left.
    assert [entry.name for entry in path.parent.iterdir()] == ["imputer"]


def test_a_failed_save_leaves_nothing(fitted: CNNImputer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "imputer"
    fitted.save(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        msg = "no space left"
        raise OSError(msg)

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="no space left"):
        fitted.save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["imputer"]
    other = tmp_path / "precious"
    other.mkdir()
    with pytest.raises(FileExistsError):
        fitted.save(other, overwrite=True)


def test_load_refuses_what_is_no_imputer(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="holds no saved CNNImputer"):
        CNNImputer.load(tmp_path)
    (tmp_path / "imputer.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"holds no readable CNNImputer: imputer.json is damaged"):
        CNNImputer.load(tmp_path)
    (tmp_path / "imputer.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99; this version reads format 3"):
        CNNImputer.load(tmp_path)


def test_transform_refusals(fitted: CNNImputer) -> None:
    new = simulate(5)
    names = list(new.var_names)
    with pytest.raises(RuntimeError, match="not fitted"):
        CNNImputer().transform(new.X)
    with pytest.raises(ValueError, match="missing: 'g49'; not trained on: 'other'"):
        fitted.transform(new.X, genes=[*names[:-1], "other"])
    with pytest.raises(ValueError, match="duplicate names, which cannot be aligned: 'g0'"):
        fitted.transform(new.X, genes=["g0", "g0", *names[2:]])
    with pytest.raises(ValueError, match="trained on 50; pass genes="):
        fitted.transform(new.X[:, :9])
    with pytest.raises(ValueError, match="genes has 3 names, X has 50 columns"):
        fitted.transform(new.X, genes=names[:3])
    with pytest.raises(ValueError, match=r"clusters 'z' are unknown. Trained: 'a', 'b'"):
        fitted.transform(new.X, clusters=list("abzab"))
    with pytest.raises(ValueError, match="clusters has 2 labels, X has 5 cells"):
        fitted.transform(new.X, clusters=["a", "b"])
    with pytest.raises(ValueError, match=r"dropout has shape \(2, 2\), X has \(5, 50\)"):
        fitted.transform(new.X, dropout=np.ones((2, 2)))
    with pytest.raises(ValueError, match="dropout has values outside"):
        fitted.transform(new.X, dropout=np.full((5, 50), 7.0))
    with pytest.raises(TypeError, match="dropout is a float, expected a matrix"):
        fitted.transform(new.X, dropout=0.7)
    bad = new.X.toarray()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fitted.transform(bad)
    with pytest.raises(RuntimeError, match="keep_models=True"):
        CNNImputer(**QUICK, keep_models=False).fit(simulate(20).X).transform(new.X)


def test_genes_that_are_not_modelled_take_no_part() -> None:
    adata = simulate()
    mask = np.arange(50) >= 10
    imputer = CNNImputer(**QUICK, max_dropout=1)
    arguments = {"clusters": adata.obs["type"]}
    imputed = imputer.fit_transform(adata.X, modelled={"a": mask, "b": mask}, **arguments)
    np.testing.assert_array_equal(imputed.toarray()[:, ~mask], adata.X.toarray()[:, ~mask])
    assert set(np.array(STATUSES)[imputer.status_[~mask]].ravel()) == {"not modelled"}
    with pytest.raises(ValueError, match="no entry for the clusters 'b'"):
        imputer.fit(adata.X, modelled={"a": mask}, **arguments)
    with pytest.raises(ValueError, match=r"modelled\['a'\] has shape \(3,\) and dtype bool, expected \(50,\) and bool"):
        imputer.fit(adata.X, modelled={"a": mask[:3], "b": mask}, **arguments)


def test_status_of_what_cannot_be_predicted() -> None:
    counts = simulate(60).X.toarray()
    counts[:, 0] = 0
    clusters = np.array(["small"] * 9 + ["large"] * 51)
    imputer = CNNImputer(**QUICK, max_dropout=0.9)
    imputed = imputer.fit_transform(counts, clusters=clusters)
    status = np.array(STATUSES)[imputer.status_]
    assert imputer.clusters_ == ["large", "small"]
    assert status[0, 0] == "not modelled"
    assert set(status[:, 1]) == {"too few cells"}
    np.testing.assert_array_equal(imputed[:9], counts[:9])
    # Every gene a target of the one subset: there is none left to predict from.
    alone = CNNImputer(preset="paper", n_targets=64, max_epochs=1, verbose=False)
    holes = np.where(np.eye(60)[:, :50] > 0, 0.0, counts + 1.0)
    np.testing.assert_array_equal(alone.fit_transform(holes), holes)
    assert set(np.array(STATUSES)[alone.status_].ravel()) == {"no input genes"}
    assert alone.history_ == []
    np.testing.assert_array_equal(alone.transform(holes), holes)


def test_a_network_that_runs_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = simulate().X.toarray()

    def infinite(model: Any, inputs: Any, settings: NetworkSettings) -> np.ndarray:
        return np.full((inputs.shape[0], settings.n_targets), 1e9, np.float32)

    monkeypatch.setattr(_training, "predict", infinite)
    imputer = CNNImputer(**QUICK, max_dropout=1)
    np.testing.assert_array_equal(imputer.fit_transform(counts), counts)
    assert set(np.array(STATUSES)[imputer.status_].ravel()) == {"training failed", "nothing missing"}


def test_resolve() -> None:
    assert resolve("paper") == NetworkSettings()
    assert resolve("paper", n_top=np.int64(3), threshold=0, log=None) == NetworkSettings(n_top=3, threshold=0)
    with pytest.raises(ValueError, match=r"preset='fast' is not known. Available: \['default', 'paper'\]"):
        resolve("fast")
    with pytest.raises(TypeError, match="n_targets='512' has type str, expected int"):
        resolve("paper", n_targets="512")
    with pytest.raises(TypeError, match="n_top=True has type bool, expected int"):
        resolve("paper", n_top=True)
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
            resolve("paper", **{name: value})


def test_paper_preset_is_the_paper() -> None:
    assert PRESETS["paper"].as_dict() == {
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


def test_sparse_and_dense_inputs_agree(counts: sp.csr_matrix) -> None:
    imputer = CNNImputer(**QUICK, max_dropout=1)
    expected = imputer.fit_transform(counts)
    result = imputer.fit_transform(counts.toarray())
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, dense(expected))


def test_importing_the_network_loads_no_keras() -> None:
    code = "import sys, scanpy_cnnimpute.imputation; print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"]
