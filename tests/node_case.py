"""What the tests of nodes in the real engine share."""

import itertools
import threading

from PIL import Image

SEEDS = itertools.count()  # each test asks for takes of its own


def prompt_of(engine, size=(480, 360), **values):
    Image.new("RGB", size, "teal").save(engine.input / "start.png")
    inputs = {
        "prompt": "steam rises",
        "start_image": ["1", 0],
        "duration": 3,
        "generate_audio": True,
        "negative_prompt": "",
        "cfg_scale": 0.5,
        "model": "kling-3.0/standard",
        "seed": next(SEEDS),
        "start_image_url": "",
        "filename_prefix": "video/runcomfy-kling",
        **values,
    }
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "2": {"class_type": "RunComfyKlingImageToVideo", "inputs": inputs},
    }


class Threads:
    """The threads of this process that are newer than this object: other tests leave some."""

    def __init__(self):
        self._older = set(threading.enumerate())

    def named(self, prefix):
        """Those whose names begin so."""
        newer = set(threading.enumerate()) - self._older
        return [thread for thread in newer if thread.name.startswith(prefix)]
