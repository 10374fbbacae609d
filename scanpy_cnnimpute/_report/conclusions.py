"""What to conclude from the stored results, in words. Every sentence follows from figures that the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..imputation.base import SAMPLE_CELLS
from .words import listed, number, percent, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

    from .._anndata.results import Record
    from .records import Records

NOMINAL = 0.05  # share of genes that do not differ with p <= 0.05, of a test that is right
MAX_CALIBRATION_ERROR = 0.05  # the width of a bin of the reliability curve
LITTLE = 0.01  # relative improvement: a judgement, below what users will notice
MAX_COLLAPSED = 0.5  # share of the mixtures above which pp.dropout_prob warns
FEW_DROPOUTS = 0.01  # mean dropout probability of the zeros below which pp.dropout_prob warns

OURS = "cnn_impute"
RIVALS = {
    "none": "the counts as they are",
    "gene_mean": "the gene's mean",
    "cluster_mean": "the mean of the gene in the cluster",
    "nonzero_mean": "the mean of the gene's non-zeros",
}
HELD_OUT = {
    "molecules": "Held-out molecules",
    "masking": "Masked counts",
    "thinning": "Counts before thinning",
}
SCORES = {"deviance": "Poisson deviance", "mse": "mean squared error"}


@dataclass(frozen=True)
class Conclusion:
    """A sentence, and what it amounts to."""

    kind: Literal["good", "caution", "note"]
    text: str


def conclusions(records: Records) -> list[Conclusion]:
    """All conclusions, the most important first."""
    found = [each for key, record in records.evaluations.items() for each in _held_out(key, record, records)]
    if records.imputed is not None and not records.evaluations:
        found.append(
            Conclusion(
                "caution",
                "Not tested on held-out counts: scnn.tl.eval_imputation(adata) says whether imputation predicts better "
                "than the gene's mean on these data.",
            )
        )
    parts = (_probabilities,) if records.imputed is None else (_probabilities, _tests, _imputed, _training, _use)
    return [*found, *(each for part in parts for each in part(records))]


@dataclass(frozen=True)
class Comparison:
    """The imputation beside one simple method.

    Attributes
    ----------
    name
        Of the simple method.
    better, worse
        Whether the imputation is so with every seed.
    ours, theirs
        Medians over the seeds.
    """

    name: str
    better: bool
    worse: bool
    ours: float
    theirs: float

    def words(self) -> str:
        """As in "18 % better than by the gene's mean (0.480)"."""
        rival = RIVALS.get(self.name, f"the simple method {self.name!r}")
        by = f"by {rival} ({self.theirs:.3f})"
        change = 1 - self.ours / self.theirs if self.theirs else np.nan
        if not (self.better or self.worse) or not np.isfinite(change):
            return f"about as well as {by}"
        if change <= -1:
            return f"{1 - change:.1f} times as badly as {by}"
        return f"{percent(abs(change))} {'better' if self.better else 'worse'} than {by}"


def compare(record: Record) -> tuple[str, list[Comparison]]:
    """The first score of an evaluation, and the comparisons that decide whether to impute.

    For masked counts, which are known not to be zero, these are with the mean of the gene's non-zeros. The others are
    those of the page "Should I impute?". The best simple method is added if it is another.
    """
    scores = record.table("scores")
    score = next(name for name in scores.columns if name not in {"method", "seed"})
    values: pd.DataFrame = scores.pivot_table(index="seed", columns="method", values=score, dropna=False)
    params = record["params"]
    names = ["nonzero_mean"] if params["how"] == "masking" else ["none", "gene_mean"]
    if params.get("cluster_key") is not None and params["how"] != "masking":
        names.append("cluster_mean")
    simple = values.drop(columns=OURS).median().dropna()
    if simple.size and simple.idxmin() not in {*names, "cluster_mean"}:
        names.append(str(simple.idxmin()))
    found = []
    for name in names:
        pair = values[[OURS, name]]
        if pair.notna().all(axis=None):
            difference = pair[OURS] - pair[name]
            ours, theirs = pair.median()
            found.append(Comparison(name, bool((difference < 0).all()), bool((difference > 0).all()), ours, theirs))
    return score, found


def _held_out(key: str, record: Record, records: Records) -> Iterator[Conclusion]:
    score, found = compare(record)
    params = record["params"]
    if not found:
        yield Conclusion("note", f"The scores under {plain(key)!r} are not defined: too little was held out.")
        return
    n_seeds = record.table("scores")["seed"].nunique()
    agree = all(each.better or each.worse for each in found)
    repeated = f"in {'each of ' * agree}{n_seeds} repetitions"
    sure = repeated if n_seeds > 1 else "in one repetition, which may be chance"
    verdict, kind = _verdict({each.name: each for each in found})
    words = listed([each.words() for each in found])
    score_of_ours = f"{SCORES[score]} {found[0].ours:.3f}"
    yield Conclusion(kind, f"{verdict} {HELD_OUT[params['how']]} ({score_of_ours}) are predicted {words}, {sure}.")
    ran = params["preset"]
    if records.imputed is not None and ran != records.imputed["params"]["preset"]:
        mine = records.imputed["params"]["preset"]
        yield Conclusion("caution", f"This test was of preset={ran!r}; the values here are of preset={mine!r}.")


def _verdict(found: Mapping[str, Comparison]) -> tuple[str, Literal["good", "caution"]]:
    """What the page "Should I impute?" advises."""
    failed = [name for name, each in found.items() if not each.better]
    if "none" in failed:
        return "Do not impute these data: imputation is no better than doing nothing.", "caution"
    if "gene_mean" in failed:
        return "Do not impute these data: what is imputed says nothing about single cells.", "caution"
    if "cluster_mean" in failed:
        return "Imputation says no more than a table of cluster means.", "caution"
    if failed:
        return f"A simple method does as well or better: {listed(map(repr, failed))}.", "caution"
    gain = min(1 - each.ours / each.theirs for each in found.values())
    return "Imputation helps here." if gain >= LITTLE else "Imputation helps a little here.", "good"


def _probabilities(records: Records) -> Iterator[Conclusion]:
    record = records.dropout
    if record is None:
        text = (
            f"No dropout model is stored under {plain(records.dropout_key)!r}: the probabilities were a layer of your "
            "own, or the model was deleted. Nothing here says whether they are right."
        )
        yield Conclusion("caution", text)
        return
    if records.has_own_probabilities:
        text = (
            f"The imputation used layers[{plain(records.dropout_key)!r}] as you changed it, not the model, which the "
            "reliability curve is about."
        )
        yield Conclusion("caution", text)
    curve = record.get("reliability")
    if curve is not None and not curve.empty:
        error, bias = calibration(curve)
        if error <= MAX_CALIBRATION_ERROR:
            text = f"Dropout probabilities mean what they say: they are off by {number(round(error, 3))} on average."
            yield Conclusion("good", text)
        else:
            side = "overstated" if bias > 0 else "understated"
            text = f"Dropout probabilities are {side}: they are off by {number(round(error, 3))} on average."
            yield Conclusion("caution", text)
    summary = record.table("summary")
    if "dropouts" in summary:
        missing = mean_over_cells(summary, "dropouts")
        if missing < FEW_DROPOUTS:
            yield Conclusion(
                "caution",
                f"Hardly any zero is a probable dropout ({percent(missing)}): imputing changes little. State a lower "
                "capture_efficiency= if more is missing than a deeper run would count.",
            )
    if "gain" in summary:
        share = percent(summary["gain"].iloc[0])
        text = (
            f"The dropout model predicts held-out molecules of {share} of the genes better than their mean or zeros do."
        )
        yield Conclusion("note", text)
    if "collapsed" in summary:
        n_collapsed = int((summary["collapsed"] > MAX_COLLAPSED).sum())
        called = percent(mean_over_cells(summary, "zeros_called"))
        text = f"The gamma-normal mixture calls {called} of the zeros dropouts, and has no test of its probabilities."
        if n_collapsed:
            text += (
                f" In {n_collapsed} of {len(summary)} clusters most mixtures have collapsed onto the zeros: they say "
                "that a zero is a zero, not that a transcript was missed. model='calibrated' has no such fault."
            )
        yield Conclusion("caution", text)


def calibration(curve: pd.DataFrame) -> tuple[float, float]:
    """Mean distance, and mean difference, of stated and observed shares, weighted by zeros."""
    difference, weights = curve["probability"] - curve["share"], curve["n"]
    return float(np.average(np.abs(difference), weights=weights)), float(np.average(difference, weights=weights))


def mean_over_cells(summary: pd.DataFrame, column: str) -> float:
    """Mean of a column of a summary, clusters weighted by their cells."""
    weights = summary["n_cells"].to_numpy(np.float64)
    return float(np.average(summary[column], weights=weights)) if weights.sum() else float("nan")


def _imputed(records: Records) -> Iterator[Conclusion]:
    if records.imputed is None:
        return
    params, summary = records.imputed["params"], records.imputed.table("summary")
    n_entries = int(summary["n_entries"].sum())
    if n_entries == 0:
        yield Conclusion("caution", "Nothing was imputed. The table of reasons says why, and what changes it.")
        return
    everything = params.get("entries") == "all"
    what = "entries" if everything else "zeros"
    status = records.imputed.table("status")
    n_genes = int((status == "imputed").any(axis=1).sum())
    where = share = ""
    if is_sampled(records):
        where = f" of a sample of {SAMPLE_CELLS} cells"
    elif not everything and records.n_zeros:
        share = f" ({percent(n_entries / records.n_zeros)} of the zeros)"
    text = f"{n_entries:,} {what}{where} in {n_genes:,} of {len(status):,} genes have a predicted value{share}."
    yield Conclusion("note", text + ("" if everything else " Observed counts are unchanged."))


def is_sampled(records: Records) -> bool:
    """Whether imputed entries were counted in some cells only: no layer was written, or a lazy one."""
    record = records.imputed
    return (
        record is not None
        and (records.is_lazy or f"layers:{records.imputed_key}" not in set(record["written"]))
        and int(record.table("summary")["n_cells"].sum()) > SAMPLE_CELLS
    )


def _training(records: Records) -> Iterator[Conclusion]:
    history = None if records.imputed is None else records.imputed.table("history")
    if history is None or records.newest["params"]["preset"] == "paper":
        return
    losses = history["val_loss"].to_numpy(np.float64)
    if not np.isfinite(losses).any():
        return
    if np.nanmin(losses) < losses[0]:
        fall = 1 - np.nanmin(losses) / losses[0]
        text = (
            f"The network lowered its validation loss by {fall:.1%}, from {losses[0]:.5g} to {np.nanmin(losses):.5g}: "
            "most of the prediction is the dropout model's."
        )
        yield Conclusion("note", text)
    else:
        yield Conclusion(
            "note",
            "The network changes nothing: its validation loss did not fall below that before training.",
        )


def _tests(records: Records) -> Iterator[Conclusion]:
    if records.imputed is None:
        return
    yield from _ordinary_tests(records)
    text = "Do not correlate genes in imputed values: imputation makes correlations that the counts do not have."
    yield Conclusion("caution", text)


def _ordinary_tests(records: Records) -> Iterator[Conclusion]:
    use = "Use scnn.tl.rank_genes_groups, whose p-values decoys calibrate, and compare samples by sums of counts."
    rows = [
        row
        for record in records.false_signals.values()
        for _, row in record.table("table").iterrows()
        if row["layer"] == records.imputed_key and np.isfinite(row["called"])
    ]
    if not rows:
        yield Conclusion(
            "caution",
            "Do not test imputed values with an ordinary test: imputed cells are alike, so that tests find differences "
            f"where there are none. {use}",
        )
        return
    shares = [f"{row['method']} {percent(row['called'])}" for row in rows]
    right = percent(NOMINAL)
    text = f"Of genes that do not differ, ordinary tests of imputed values call {listed(shares)} (right: {right}). "
    if max(row["called"] for row in rows) > NOMINAL:
        text = "Do not test imputed values with an ordinary test. " + text
    yield Conclusion("caution", text + use)


def _use(records: Records) -> Iterator[Conclusion]:
    if records.dropout is not None and records.dropout["params"]["model"] == "calibrated":
        if "capture_efficiency" not in records.dropout["params"]:
            yield Conclusion(
                "note",
                "The capture efficiency was not stated. Missing is then what a deeper run of the same cells would "
                "still count, which is cautious.",
            )
        size = f"the library sizes of the observed counts, obs[{plain(records.dropout_key + '_library_size')!r}]"
        if "depth" in records.newest["params"]:
            size = f"depth={plain(records.newest['params']['depth'])}, the library size that they are of"
        yield Conclusion("note", f"Normalise imputed values with {size}, not with their own sums.")
