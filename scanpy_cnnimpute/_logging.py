"""The package's logger; no handler is installed here."""

from __future__ import annotations

import logging

logger = logging.getLogger("scanpy_cnnimpute")
