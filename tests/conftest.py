"""Fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
from helpers import KINDS, QUICK, simulate, unsorted, untrained

if TYPE_CHECKING:
    import anndata as ad

# Ten thousand cases of the nine tests of test_fuzz.py by --hypothesis-profile=large.
hypothesis.settings.register_profile("small", max_examples=12, derandomize=True, deadline=None)
hypothesis.settings.register_profile("large", max_examples=1_300, deadline=None)
hypothesis.settings.load_profile("small")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the modules that take more than a minute")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: add --slow"))


@pytest.fixture
def adata() -> ad.AnnData:
    return simulate()


@pytest.fixture(scope="session")
def imputed() -> ad.AnnData:
    """One imputation that read-only tests share."""
    import scanpy_cnnimpute as scnn

    adata = simulate()
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    scnn.pp.cnn_impute(adata, **QUICK)
    return adata


@pytest.fixture(params=[*KINDS, "view", "unsorted"])
def any_kind(request: pytest.FixtureRequest) -> ad.AnnData:
    """The simulated counts in every kind of matrix."""
    adata = simulate()
    if request.param == "view":
        return adata[::-1][::-1]
    if request.param == "unsorted":
        return unsorted(adata)
    adata.X = KINDS[request.param](adata.X)
    return adata


@pytest.fixture
def quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default networks that are not trained but correct every prediction, which on few cells training hardly does."""
    for estimate in ("molecules", "nonzero"):
        monkeypatch.setattr(f"scanpy_cnnimpute.imputation.default.{estimate}.train_network", untrained)
