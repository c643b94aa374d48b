"""The body of a paid submit, which knows whether its last byte was handed to the socket."""

from collections.abc import Callable, Iterator

LEAST_BYTES_S = 65536  # a slower line is broken off: 64 MiB get 17 minutes


def send_limit_s(size: int) -> float:
    """How long sending ``size`` bytes may take, in seconds."""
    return 30.0 + size / LEAST_BYTES_S


class SubmitBody:
    """File-like, so that requests streams it piece by piece.

    Sent as plain bytes, all of it together would have to fit into one connect time-out. Reading
    raises once the time is up or ``give_up`` says so, which breaks the send off before its end: a
    job that did not arrive whole does not start.
    """

    def __init__(
        self, data: bytes, *, clock: Callable[[], float], give_up: Callable[[], bool]
    ) -> None:
        self._data = memoryview(data)
        self._sent = 0
        self._clock = clock
        self._give_up = give_up
        self._limit_s = send_limit_s(len(data))
        self._deadline = clock() + self._limit_s

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[bytes]:  # its presence marks a stream for requests
        while piece := self.read(16384):
            yield piece

    def read(self, size: int = -1) -> bytes:
        """The next piece; raises TimeoutError to break the send off."""
        if not self.handed_over:
            if self._give_up():
                raise TimeoutError("stopped")
            if self._clock() > self._deadline:
                raise TimeoutError(f"sending took more than {self._limit_s:.0f} s")
        end = len(self._data) if size < 0 else min(self._sent + size, len(self._data))
        piece = bytes(self._data[self._sent : end])
        self._sent = end
        return piece

    @property
    def handed_over(self) -> bool:
        """True from the moment the last byte is given out, even if it may not arrive."""
        return self._sent >= len(self._data)
