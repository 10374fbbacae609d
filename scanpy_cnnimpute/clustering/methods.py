"""The three ways to cluster cells: which coordinates, which algorithm, and what of many cells is clustered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from .._checks import check_choice, check_number, check_seed
from .._logging import logger
from .assignment import N_VOTERS, majority_labels
from .density_peaks import adaptive_density_peaks
from .embedding import embed, tsne
from .kmeans import kmeans
from .leiden import leiden

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from .density_peaks import DensityPeaks

Method = Literal["adp", "leiden", "kmeans"]

MIN_CELLS = 10  # as many as Leiden takes for the neighbours of one cell; fewer cells are one cluster
# Of more cells, a random draw is clustered and the others are assigned: the time of the exact search for neighbours
# grows with the square of the cells, and takes seconds up to here.
MAX_CELLS = 20_000
# For "adp", t-SNE in three dimensions takes a core a minute or two for 5,000 cells and many times as long for 20,000.
DRAWN_CELLS: dict[Method, int] = {"leiden": MAX_CELLS, "kmeans": MAX_CELLS, "adp": 5_000}


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Clusters of cells.

    Attributes
    ----------
    labels
        ``(n_cells,)`` int64 from 0 without gaps; -1 for cells without counts.
    coordinates
        ``(n_cells, n_dimensions)``; NaN for cells without counts, and t-SNE for cells that were assigned.
    clustered
        Positions of the cells that were clustered, rising. The others were assigned.
    peaks
        The density peaks of these cells that k-means started from, for ``"adp"``.
    """

    labels: NDArray[np.int64]
    coordinates: NDArray
    clustered: NDArray[np.int64]
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
        plain = {
            "resolution": check_number("resolution", self.resolution, float, 0),
            "random_state": check_seed(self.random_state),
        }
        if self.n_clusters is not None:
            plain["n_clusters"] = check_number("n_clusters", self.n_clusters, int, 1)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
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

    def cluster_counts(self, counts: sp.csr_array) -> Clustering:
        """Clusters of the cells that have counts, by principal components, for ``"adp"`` by their t-SNE.

        Raises
        ------
        ValueError
            If no cell has counts, or `n_clusters` is more than the cells to cluster.
        """
        cells = np.flatnonzero(np.diff(counts.indptr))
        if cells.size == 0:
            msg = "No cell has any counts: there is nothing to cluster."
            raise ValueError(msg)
        clustered = self._draw(cells)
        components = embed(counts, clustered, random_state=self.random_state)
        points = components[clustered]
        coordinates = components
        if self.method == "adp" and len(points) >= MIN_CELLS and not _all_equal(points):
            points = tsne(points, random_state=self.random_state)
            coordinates = np.full((counts.shape[0], points.shape[1]), np.nan, dtype=points.dtype)
            coordinates[clustered] = points
        labels, peaks = self._cluster(points)
        labels = majority_labels(components, clustered, labels)
        return Clustering(labels=labels, coordinates=coordinates, clustered=clustered, peaks=peaks)

    def cluster_points(self, points: np.ndarray) -> Clustering:
        """Clusters of points without NaN.

        Raises
        ------
        ValueError
            If there is no point, or `n_clusters` is more than the points to cluster.
        """
        if len(points) == 0:
            msg = "No cell has coordinates: there is nothing to cluster."
            raise ValueError(msg)
        clustered = self._draw(np.arange(len(points)))
        # The memory layout of the points stays if all are clustered: sums depend on it in the last bit.
        labels, peaks = self._cluster(points if clustered.size == len(points) else points[clustered])
        labels = majority_labels(points, clustered, labels)
        return Clustering(labels=labels, coordinates=points, clustered=clustered, peaks=peaks)

    def _draw(self, cells: np.ndarray) -> np.ndarray:
        """The cells to cluster, rising: all, or a random draw of many."""
        if cells.size <= MAX_CELLS:
            return cells
        n_drawn = DRAWN_CELLS[self.method]
        logger.info(
            "tl.cluster: more than %d cells: clusters are found in %d of the %d, drawn at random; each other cell gets "
            "the cluster of most of its %d nearest drawn cells",
            MAX_CELLS,
            n_drawn,
            cells.size,
            N_VOTERS,
        )
        return np.sort(np.random.default_rng(self.random_state).choice(cells, n_drawn, replace=False))

    def _cluster(self, points: np.ndarray) -> tuple[np.ndarray, DensityPeaks | None]:
        """Labels, and density peaks for ``"adp"``; one cluster if the points are fewer than ten or all equal."""
        n_points = len(points)
        if self.n_clusters is not None and self.n_clusters > n_points:
            msg = f"n_clusters={self.n_clusters} is more than the {n_points} cells to cluster."
            raise ValueError(msg)
        if self.n_clusters == 1 or (n_points < MIN_CELLS and self.method != "kmeans") or _all_equal(points):
            logger.info("tl.cluster: %d cells are one cluster", n_points)
            return np.zeros(n_points, dtype=np.int64), None
        if self.method == "leiden":
            return leiden(points, resolution=self.resolution, random_state=self.random_state), None
        if self.n_clusters is not None and self.method == "kmeans":
            return kmeans(points, n_clusters=self.n_clusters, random_state=self.random_state), None
        tried = {} if self.n_clusters is None else {"n_clusters": [self.n_clusters]}
        peaks = adaptive_density_peaks(points, **tried)
        centers = points[peaks.centers]
        return kmeans(points, n_clusters=len(centers), centers=centers, random_state=self.random_state), peaks


def _all_equal(points: np.ndarray) -> bool:
    return bool((points == points[:1]).all())
