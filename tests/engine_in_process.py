"""The real ComfyUI engine inside the test process: its loader, its validation, its executor.

Faster than a server and open to monkeypatching. Only its web server does not run; what it would
have sent to the browser is kept in the outcome of each run.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import struct
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRA_NODES = (
    "nodes_latent.py",  # first, as in ComfyUI: nodes_post_processing and it import each other
    "nodes_images.py",
    "nodes_post_processing.py",
    "nodes_preview_any.py",
    "nodes_primitive.py",
    "nodes_rebatch.py",
    "nodes_video.py",
)
TEXT_EVENT = 3  # protocol.BinaryEventTypes.TEXT
Prompt = dict[str, dict[str, Any]]


@dataclass
class Outcome:
    """What one prompt came to."""

    refused: dict[str, Any] = field(default_factory=dict)
    """Node id -> validation errors; empty when the prompt was accepted."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Executor messages in order, such as ("execution_error", {...})."""
    outputs: dict[str, list[list[Any]]] = field(default_factory=dict)
    """Node id -> for each output the list of its values."""
    ui: dict[str, Any] = field(default_factory=dict)
    """Node id -> what the node shows on itself, as in the server's history."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(node id, progress text) in order."""

    @property
    def succeeded(self) -> bool:
        """Accepted, and run to the end."""
        return any(name == "execution_success" for name, _ in self.events)

    @property
    def interrupted(self) -> bool:
        """Ended by Stop."""
        return any(name == "execution_interrupted" for name, _ in self.events)

    @property
    def error(self) -> str:
        """The failing node's message, or why validation refused the prompt; else empty."""
        for name, data in self.events:
            if name == "execution_error":
                return str(data["exception_message"]).strip()
        faults = [error for node in self.refused.values() for error in node["errors"]]
        return "\n".join(f"{fault['message']}: {fault['details']}" for fault in faults)


class Engine:
    """One per process: ComfyUI keeps its state in modules."""

    def __init__(self, engine_dir: Path, base: Path) -> None:
        self.base = base
        self.input = base / "input"
        self.output = base / "output"
        importlib.import_module("pack.dev.torchvision_schemas").install()
        sys.path.insert(0, str(engine_dir))
        args = importlib.import_module("comfy.cli_args").args
        args.cpu = True
        args.base_directory = str(base)
        args.database_url = "sqlite:///:memory:"

        importlib.import_module("pack.dev.comfyui").prepare_base(base)
        # Before `execution`: that puts comfy/ first on sys.path, where a utils.py would be taken.
        importlib.import_module("utils.install_util")
        self.execution = importlib.import_module("execution")
        self.nodes = importlib.import_module("nodes")
        self.server = importlib.import_module("server").PromptServer(asyncio.new_event_loop())
        self.server.send_sync = self._keep_event  # no browser is connected
        self._sent: list[tuple[Any, Any]] = []

        self.pack_folder = base / "custom_nodes" / "runcomfy-kling"
        self._load(self.pack_folder, "custom_nodes")
        for name in EXTRA_NODES:
            self._load(engine_dir / "comfy_extras" / name, "comfy_extras")

    def module(self, name: str) -> Any:
        """A module of the pack as this engine loaded it, such as `nodes.comfy_bridge`."""
        return importlib.import_module(f"{str(self.pack_folder).replace('.', '_x_')}.{name}")

    def executor(self) -> Any:
        """An executor with a cache of its own; give it to several runs to share the cache."""
        return self.execution.PromptExecutor(
            self.server,
            cache_type=self.execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0, "ram_inactive": 0},
        )

    def run(self, prompt: Prompt, *, executor: Any = None) -> Outcome:
        """Validate and execute an API prompt as the server's worker does, to its end."""
        prompt = copy.deepcopy(prompt)  # the engine writes into it
        prompt_id = uuid.uuid4().hex
        valid, error, targets, refused = asyncio.run(
            self.execution.validate_prompt(prompt_id, prompt, None)
        )
        if not valid:
            return Outcome(refused=refused or {"prompt": {"errors": [error]}})
        executor = executor or self.executor()
        self._sent = []
        queue, extra = self.server.prompt_queue, {"client_id": "tests"}
        queue.put((0, prompt_id, prompt, extra, targets, {}))
        _, item_id = queue.get()
        executor.execute(prompt, prompt_id, extra, targets)
        status = queue.ExecutionStatus("", executor.success, executor.status_messages)
        queue.task_done(item_id, executor.history_result, status)
        return Outcome(
            events=list(executor.status_messages),
            outputs=asyncio.run(self._outputs(executor, prompt)),
            ui=executor.history_result["outputs"],
            texts=self.texts,
        )

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(node id, progress text) since the latest run began; some come after its end."""
        return [text for event in self._sent for text in progress_texts(*event)]

    def stop(self) -> None:
        """What the Stop button does; from any thread, while a prompt runs."""
        self.nodes.interrupt_processing()

    def _load(self, path: Path, parent: str) -> None:
        loaded = asyncio.run(self.nodes.load_custom_node(str(path), module_parent=parent))
        assert loaded, f"ComfyUI could not load {path}; its log is above"

    def _keep_event(self, event: Any, data: Any, sid: str | None = None) -> None:
        self._sent.append((event, data))

    async def _outputs(self, executor: Any, prompt: Prompt) -> dict[str, list[list[Any]]]:
        found = {}
        for node_id in prompt:
            entry = executor.caches.outputs.get(node_id)
            if inspect.isawaitable(entry):
                entry = await entry
            if entry is not None:
                found[node_id] = entry.outputs
        return found


def progress_texts(event: Any, data: Any) -> list[tuple[str, str]]:
    """The progress text in one event to the browser, if it is one."""
    if not isinstance(data, bytes) or event != TEXT_EVENT:
        return []
    (length,) = struct.unpack_from(">I", data)
    return [(data[4 : 4 + length].decode(), data[4 + length :].decode())]
