"""The three ways to cluster cells: which coordinates, which algorithm."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from .._checks import check_choice, check_number, check_seed
from .._logging import logger
from .density_peaks import adaptive_density_peaks
from .embedding import log_cpm, principal_components, tsne
from .kmeans import kmeans
from .leiden import leiden

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from .density_peaks import DensityPeaks

Method = Literal["adp", "leiden", "kmeans"]

MIN_CELLS = 10  # as many as Leiden takes for the neighbours of one cell; fewer cells are one cluster


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Clusters of points.

    Attributes
    ----------
    labels
        ``(n_points,)`` int64 from 0 without gaps.
    peaks
        The density peaks that k-means started from, for ``"adp"``.
    """

    labels: NDArray[np.int64]
    peaks: DensityPeaks | None = None


@dataclass(frozen=True, kw_only=True)
class Clusterer:
    """A method and its settings; see :func:`scanpy_cnnimpute.tl.cluster`.

    Raises
    ------
    TypeError, ValueError
        For unknown methods, and settings that are impossible or do not go with the method.
    """

    method: Method = "leiden"
    n_clusters: int | None = None
    resolution: float = 1.0
    random_state: int = 1

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        if self.n_clusters is not None:
            check_number("n_clusters", self.n_clusters, int, 1)
        check_number("resolution", self.resolution, float, 0)
        check_seed(self.random_state)
        if self.method == "kmeans" and self.n_clusters is None:
            msg = "method='kmeans' needs n_clusters=."
            raise ValueError(msg)
        if self.method == "leiden" and self.n_clusters is not None:
            msg = "method='leiden' chooses the number of clusters by resolution=; n_clusters= is not allowed."
            raise ValueError(msg)

    def params(self) -> dict[str, str | int | float | None]:
        """The settings that this method uses."""
        settings = asdict(self)
        if self.method != "leiden":
            del settings["resolution"]
        return settings

    def embed(self, counts: sp.csr_array) -> np.ndarray:
        """Coordinates of cells with counts: principal components, and for ``"adp"`` their t-SNE."""
        components = principal_components(log_cpm(counts), random_state=self.random_state)
        if self.method != "adp" or len(components) < MIN_CELLS or _all_equal(components):
            return components
        return tsne(components, random_state=self.random_state)

    def cluster(self, points: np.ndarray) -> Clustering:
        """Clusters of points; one cluster if the points are fewer than ten or all equal."""
        n_points = len(points)
        if n_points == 0:
            msg = "No cell has coordinates: there is nothing to cluster."
            raise ValueError(msg)
        if self.n_clusters is not None and self.n_clusters > n_points:
            msg = f"n_clusters={self.n_clusters} is more than the {n_points} cells to cluster."
            raise ValueError(msg)
        if self.n_clusters == 1 or (n_points < MIN_CELLS and self.method != "kmeans") or _all_equal(points):
            logger.info("tl.cluster: %d cells are one cluster", n_points)
            return Clustering(labels=np.zeros(n_points, dtype=np.int64))
        if self.method == "leiden":
            return Clustering(labels=leiden(points, resolution=self.resolution, random_state=self.random_state))
        if self.n_clusters is not None and self.method == "kmeans":
            return Clustering(labels=kmeans(points, n_clusters=self.n_clusters, random_state=self.random_state))
        tried = {} if self.n_clusters is None else {"n_clusters": [self.n_clusters]}
        peaks = adaptive_density_peaks(points, **tried)
        centers = points[peaks.centers]
        labels = kmeans(points, n_clusters=len(centers), centers=centers, random_state=self.random_state)
        return Clustering(labels=labels, peaks=peaks)


def _all_equal(points: np.ndarray) -> bool:
    return bool((points == points[:1]).all())
