"""Time and memory of the stages and of both presets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.clustering.density_peaks import adaptive_density_peaks
from scanpy_cnnimpute.imputation.paper import inputs

from .counts import resampled

SIZES = [(300, 2000), (3000, 2000), (30000, 2000), (3000, 15000)]


class _Sized:
    """Counts of one size in one cluster, made before the clock starts; kernels are compiled by then."""

    params = [SIZES]
    param_names = ["cells x genes"]
    number = 1
    repeat = (1, 3, 60.0)
    timeout = 1800

    def setup(self, size: tuple[int, int]) -> None:
        """Make the counts."""
        self.adata = resampled(*size)
        self.adata.obs["one"] = pd.Categorical(["all"] * self.adata.n_obs)


class DropoutProb(_Sized):
    """The published dropout probabilities (EM for every gene), and the default's."""

    params = [SIZES, ["gamma_normal", "calibrated"]]
    param_names = ["cells x genes", "model"]

    def setup(self, size: tuple[int, int], model: str) -> None:
        """Compile."""
        super().setup(size)
        scnn.pp.dropout_prob(self.adata[:50].copy(), cluster_key="one", model=model)

    def time_dropout_prob(self, size: tuple[int, int], model: str) -> None:
        """Fit, probabilities and what is stored."""
        scnn.pp.dropout_prob(self.adata, cluster_key="one", model=model)

    def peakmem_dropout_prob(self, size: tuple[int, int], model: str) -> None:
        """The same."""
        scnn.pp.dropout_prob(self.adata, cluster_key="one", model=model)


class DensityPeaks:
    """Adaptive density peaks on an embedding in the plane."""

    params = [300, 3000]
    param_names = ["cells"]

    def setup(self, n_cells: int) -> None:
        """Two dimensions of real data."""
        adata = resampled(n_cells, 2000)
        scaled = np.log1p(adata.X.toarray())
        self.plane = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)[0][:, :2]
        adaptive_density_peaks(self.plane[:50])

    def time_adaptive(self, n_cells: int) -> None:
        """Densities, distances, centres and labels."""
        adaptive_density_peaks(self.plane)


class InputGenes(_Sized):
    """The correlated genes of the published networks."""

    def setup(self, size: tuple[int, int]) -> None:
        """Genes that vary."""
        super().setup(size)
        self.values = sparse.csc_array(self.adata.X.log1p())
        self.genes = np.flatnonzero(~inputs.is_constant(self.values))
        inputs.select_inputs(self.values, self.genes[:2], self.genes[:9], 5)

    def time_select_inputs(self, size: tuple[int, int]) -> None:
        """Those of all genes, subset by subset."""
        for start in range(0, self.genes.size, 512):
            inputs.select_inputs(self.values, self.genes[start : start + 512], self.genes, 5)

    def peakmem_select_inputs(self, size: tuple[int, int]) -> None:
        """Those of one subset."""
        inputs.select_inputs(self.values, self.genes[:512], self.genes, 5)


class Presets(_Sized):
    """Everything from counts to imputed counts with the default preset."""

    def time_default(self, size: tuple[int, int]) -> None:
        """As shipped."""
        scnn.pp.cnn_impute(self.adata, verbose=False)

    def peakmem_default(self, size: tuple[int, int]) -> None:
        """As shipped."""
        scnn.pp.cnn_impute(self.adata, verbose=False)


class Networks:
    """The networks with given dropout probabilities, that is, the conditional estimate of both presets."""

    params = ["paper", "default"]
    param_names = ["preset"]
    number = 1
    repeat = 1
    timeout = 1800

    def setup(self, preset: str) -> None:
        """Fit once, so that the networks are compiled."""
        self.counts = resampled(300, 1000).X
        short = {"max_epochs": 3} if preset == "paper" else {}
        self.imputer = scnn.CNNImputer(preset=preset, estimate="conditional", verbose=False, **short)
        # Half of the zeros are dropouts: the published networks take no inputs that are dropouts in most cells.
        self.dropout = np.random.default_rng(0).random(self.counts.shape, dtype=np.float32)
        self.imputer.fit(self.counts, dropout=self.dropout)

    def time_fit(self, preset: str) -> None:
        """Training; three epochs of the published networks."""
        self.imputer.fit(self.counts, dropout=self.dropout)

    def time_transform(self, preset: str) -> None:
        """Prediction."""
        self.imputer.transform(self.counts, dropout=self.dropout)
