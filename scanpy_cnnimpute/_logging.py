"""The package's logger; no handler is installed here."""

from __future__ import annotations

import logging

logger = logging.getLogger("scanpy_cnnimpute")

PACKAGE_NOTE = "Issued by scanpy_cnnimpute."
"""Added to warnings, which tells them from those of libraries."""
