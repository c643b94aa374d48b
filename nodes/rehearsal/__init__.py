"""The local stand-in of RunComfy's Model API: the same HTTP, on loopback, free and offline.

It exists so that every node can be tried, and every fault met, before anything is paid. It reads
the API page on its own and shares no code with the client: a wrong belief of the client shows up
here as a refusal. Importing this package is light; aiohttp, pydantic, Pillow and av are loaded
when a server starts.
"""

from .faults import Fault, FaultKind
from .journal import Request, Submission
from .server import RehearsalServer

__all__ = ["Fault", "FaultKind", "RehearsalServer", "Request", "Submission"]
