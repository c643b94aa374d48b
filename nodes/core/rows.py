"""A job as the ledger keeps it: what is written before its POST, and what is read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import LedgerError
from .identity import canonical
from .states import JobState

_JSON_COLUMNS = ("payload", "prompt", "workflow")


@dataclass(frozen=True)
class NewJob:
    """What is written before the POST. ``price_usd`` is the estimate, in USD."""

    identity: str
    near_identity: str
    origin: str
    account: str
    model_id: str
    payload: Mapping[str, Any]
    price_usd: float
    prefix: str
    duration_s: float
    prompt: Mapping[str, Any] | None = None
    workflow: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One job as the ledger has it. Times in seconds since 1970, prices in USD."""

    id: int
    identity: str
    near_identity: str
    state: JobState
    origin: str
    account: str
    owner: str
    model_id: str
    request_id: str | None
    payload: Mapping[str, Any]
    prompt: Mapping[str, Any] | None
    workflow: Mapping[str, Any] | None
    prefix: str
    duration_s: float
    price_usd: float
    cost_usd: float | None
    path: str | None
    file_sha256: str | None
    error: str | None
    created_at: float
    changed_at: float
    post_over_at: float
    collected_at: float | None


def columns_of(new: NewJob) -> dict[str, Any]:
    """The values of a new row, by column."""
    values = {field.name: getattr(new, field.name) for field in fields(new)}
    for name in _JSON_COLUMNS:
        values[name] = canonical(values[name]) if values[name] is not None else None
    return values


def row_of(found: Any) -> Row:
    """A row of the database; raises LedgerError for one that is damaged."""
    values = dict(found._mapping)
    try:
        values["state"] = JobState(values["state"])
        for name in _JSON_COLUMNS:
            values[name] = json.loads(values[name]) if values[name] is not None else None
    except ValueError as error:
        raise LedgerError(f"Job number {values['id']} in the ledger is damaged: {error}.") from None
    return Row(**values)
