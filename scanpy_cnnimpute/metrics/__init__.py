"""Pure metrics on arrays."""

from __future__ import annotations

from ._clusters import adjusted_rand_index, entropy, normalized_mutual_information, purity

__all__ = ["adjusted_rand_index", "entropy", "normalized_mutual_information", "purity"]
