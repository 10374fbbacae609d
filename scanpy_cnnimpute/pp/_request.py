"""What a call of ``pp.cnn_impute`` asks for, and what that amounts to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from .._anndata.counts import layer_names
from .._anndata.models import has_dropout_model
from .._anndata.results import check_keys, stored_record
from .._checks import check_choice, check_key, check_number, check_seed
from .._logging import logger
from ..dropout.read_counts import CountType
from ..imputation import Entries, Imputer, find_imputer, resolve_settings
from ..imputation.backend import check_backend
from ._dropout_prob import DEFAULT_CLUSTER_KEY, MAX_STORED_BYTES, Store

if TYPE_CHECKING:
    from anndata import AnnData

    from ..presets import Settings


@dataclass(frozen=True, kw_only=True)
class ImputeRequest:
    """The keywords of :func:`~scanpy_cnnimpute.pp.cnn_impute` that are kept as parameters."""

    preset: str
    layer: str | None
    dropout_key: str
    cluster_key: str | None
    count_type: CountType
    entries: Entries
    estimate: str | None
    gate: bool | None
    return_std: bool
    store: Store
    max_layer_bytes: int
    random_state: int
    key_added: str
    settings: dict[str, Any]

    def checked(self) -> ImputeRequest:
        """The request with plain numbers, if its values are of the right kind and its keys differ."""
        plain: dict[str, Any] = {
            "random_state": check_seed(self.random_state),
            "max_layer_bytes": check_number("max_layer_bytes", self.max_layer_bytes, int, 0, MAX_STORED_BYTES),
            "return_std": check_number("return_std", self.return_std, bool),
        }
        check_choice("store", self.store, get_args(Store))
        check_choice("count_type", self.count_type, get_args(CountType))
        for name in ("layer", "cluster_key"):
            if getattr(self, name) is not None:
                check_key(name, getattr(self, name))
        others = [key for key in (self.layer, self.cluster_key) if key is not None]
        check_keys(*others, DEFAULT_CLUSTER_KEY, key_added=self.key_added, dropout_key=self.dropout_key)
        if self.gate is not None:
            plain["gate"] = check_number("gate", self.gate, bool)
        return replace(self, **plain)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a request amounts to: the imputer, its estimate and settings, and whether genes are gated."""

    imputer: type[Imputer]
    estimate: str
    settings: Settings
    gate: bool

    def params(self, request: ImputeRequest, *, has_layer: bool) -> dict[str, Any]:
        """What is recorded of the request and the choice in `.uns`."""
        asked = {name: value for name, value in vars(request).items() if name not in {"key_added", "settings"}}
        decided = {"estimate": self.estimate, "gate": self.gate, **self.settings.as_dict()}
        std_units = self.imputer.std_units if request.return_std and has_layer else None
        return {**asked, **decided, "units": "counts", "std_units": std_units}


def choose(adata: AnnData, request: ImputeRequest) -> Choice:
    """Imputer, estimate and settings as given, or as the dropout model allows; refuses what it cannot support."""
    imputer = find_imputer(request.preset, request.estimate, request.entries)
    if (
        request.estimate is None
        and request.entries == "zeros"
        and imputer.needs_calibrated
        and not _is_calibrated(adata, request.dropout_key, imputer)
    ):
        imputer = find_imputer(request.preset, "conditional")
        logger.warning(
            "pp.cnn_impute: %r holds %s, so that estimate='conditional' is used; the recommended estimates need a "
            "calibrated model.",
            request.dropout_key,
            _model_name(adata, request.dropout_key, imputer),
        )
    estimate = request.estimate or imputer.estimates[0]
    able = imputer.can_gate and _is_calibrated(adata, request.dropout_key, imputer)
    if (imputer.needs_calibrated or request.gate) and not able:
        msg = (
            f"estimate={request.estimate!r}, entries={request.entries!r}, gate={request.gate!r} need preset='default' "
            f"and a calibrated dropout model; this is preset={request.preset!r} with "
            f"{_model_name(adata, request.dropout_key, imputer)} under {request.dropout_key!r}. Run "
            "pp.dropout_prob(adata, model='calibrated') or pass estimate='conditional', entries='zeros', gate=False."
        )
        raise ValueError(msg)
    if request.count_type != "auto" and not _is_calibrated(adata, request.dropout_key, imputer):
        msg = (
            f"count_type={request.count_type!r} means nothing to {_model_name(adata, request.dropout_key, imputer)} "
            f"under {request.dropout_key!r}: leave it out."
        )
        raise ValueError(msg)
    imputer.check_std(return_std=request.return_std)
    if request.return_std and request.store == "params":
        msg = "return_std=True writes a layer, which store='params' does not: leave one of them out."
        raise ValueError(msg)
    if request.store == "params" and not imputer.is_stored:
        msg = (
            f"store='params' needs preset='default': the networks of preset={request.preset!r} are too large to be "
            "stored. Pass store='layer', or save them with CNNImputer."
        )
        raise ValueError(msg)
    check_backend()
    settings = resolve_settings(imputer, estimate, request.settings)
    return Choice(
        imputer=imputer, estimate=estimate, settings=settings, gate=able if request.gate is None else request.gate
    )


def _model_name(adata: AnnData, key: str, imputer: type[Imputer]) -> str:
    """The dropout model that will be used: the stored one, none for a layer of the user's own, else the preset's."""
    if has_dropout_model(adata, key):
        return stored_record(adata, key)["params"]["model"]
    return "a layer of your own" if key in layer_names(adata) else imputer.dropout_model


def _is_calibrated(adata: AnnData, key: str, imputer: type[Imputer]) -> bool:
    return _model_name(adata, key, imputer) == "calibrated"
