"""``report``: one HTML file that says what was imputed, how well, and what to conclude."""

from __future__ import annotations

from .page import check_report_path, report

__all__ = ["check_report_path", "report"]
