"""What the tests of whole graphs share: a picture, and the node that makes a clip of it."""

import itertools

from PIL import Image

SEEDS = itertools.count()  # each test asks for takes of its own


def prompt_of(engine, size=(480, 360), **values):
    """An API prompt: Load Image, and Image to Video with these values; None leaves one out."""
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
