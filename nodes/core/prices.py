"""What a job will cost: RunComfy's live base price, the dated table, and what was really paid.

The base price of RunComfy's catalog may be the silent rate, and the table may be out of date: the
higher of the two is the estimate. What this machine paid for the same model, sound and length
counts more than the table.
"""

import threading
import time
from collections.abc import Callable

from . import errors
from .client import Price, RunComfyClient
from .kling import KlingRequest
from .transport import Transport

KEEP_S = 3600.0
KEEP_FAILURE_S = 60.0


class Prices:
    """RunComfy's base prices, asked for once an hour. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, Price | errors.RunComfyError | None]] = {}

    def base(self, transport: Transport, model_id: str) -> Price | None:
        """The catalog's base price, None where it names none; raises RunComfyError without one."""
        key = (transport.origin, model_id)
        with self._lock:  # held while asking: the others want the same answer
            until, answer = self._known.get(key, (self._clock(), None))
            if self._clock() >= until:
                keep_s = KEEP_S
                try:
                    answer = RunComfyClient(transport).price(model_id)
                except errors.RunComfyError as error:
                    answer, keep_s = error, KEEP_FAILURE_S
                self._known[key] = (self._clock() + keep_s, answer)
        if isinstance(answer, errors.RunComfyError):
            raise answer
        return answer


def estimate_usd(request: KlingRequest, base: Price | None, paid_usd: float | None) -> float:
    """What a clip will cost, in USD.

    Args:
        request: Its values.
        base: RunComfy's live base price, where it is known.
        paid_usd: What such a clip really cost here, where there was one.
    """
    known = request.price_usd() if paid_usd is None else paid_usd
    if base is None:
        return known
    return max(known, base.base_usd * (request.duration_s if base.unit == "second" else 1))
