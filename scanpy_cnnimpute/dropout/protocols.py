"""Published capture efficiencies of protocols: the share of the molecules of a cell that is counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A published capture efficiency.

    Attributes
    ----------
    efficiency
        Share of the messenger RNA molecules of a cell that is counted: the published figure, or the middle of the
        published range.
    low, high
        Smallest and largest published figure.
    method
        How it was measured.
    source
        Where it is published.
    """

    efficiency: float
    low: float
    high: float
    method: str
    source: str


_10X = "10x Genomics Knowledge Base, article 360001539051 (What fraction of mRNA transcripts are captured per cell?)"

PROTOCOLS: dict[str, Protocol] = {
    "10x_v1": Protocol(0.074, 0.067, 0.081, "spike-ins", f"Zheng et al., Nat Commun 8:14049 (2017); {_10X}"),
    "10x_v2": Protocol(0.145, 0.14, 0.15, "not stated", _10X),
    "10x_v3": Protocol(0.31, 0.30, 0.32, "not stated", _10X),
    "cel_seq2": Protocol(0.20, 0.197, 0.22, "spike-ins", "Hashimshony et al., Genome Biol 17:77 (2016)"),
    "drop_seq": Protocol(0.128, 0.107, 0.128, "spike-ins; digital PCR", "Macosko et al., Cell 161:1202 (2015)"),
    "indrop": Protocol(0.071, 0.071, 0.071, "spike-ins", "Klein et al., Cell 161:1187 (2015)"),
    "strt_c1": Protocol(0.48, 0.48, 0.48, "spike-ins", "Islam et al., Nat Methods 11:163 (2014)"),
}
"""Protocols by name. Protocols without a published figure that could be traced are left out: MARS-seq, SCRB-seq,
Smart-seq2, Smart-seq3, STRT without UMIs, Microwell-seq, and later chemistries of 10x."""


def find_protocol(name: str) -> Protocol | None:
    """The protocol of this name, however it is written: ``"Drop-seq"`` is ``"drop_seq"``; None if there is none."""
    return next((protocol for known, protocol in PROTOCOLS.items() if _plain(known) == _plain(name)), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
