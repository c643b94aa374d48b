"""Let torchvision be imported beside a CPU torch.

Where a package index has torchvision as a CUDA build only, its compiled part cannot load without
CUDA, and its Python part then misses two operator schemas. `install()` defines them just before
torchvision is first imported: lazily, since ComfyUI warns when torch is imported before main.py.
With a CUDA torch, or a compiled part that loads, it changes nothing.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType


class _Hook(MetaPathFinder):
    def __init__(self) -> None:
        self.definitions: object | None = None  # torch forgets them when this is collected

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Find nothing; notice that torchvision is about to be imported."""
        if fullname != "torchvision" or self.definitions is not None:
            return
        import torch

        spec = importlib.machinery.PathFinder.find_spec("torchvision")
        if torch.version.cuda is not None or spec is None or spec.origin is None:
            return
        if _loads(Path(spec.origin).parent):
            return
        self.definitions = library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled part loads into this process."""
    import torch

    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def install() -> None:
    """Watch for the import of torchvision in this process."""
    sys.meta_path.insert(0, _Hook())
