"""Nodes for tests on the real server; put into its custom_nodes as a file of this name."""

import time

from comfy import model_management


class TestSampler:
    """Holds ComfyUI's event loop like a sampler, and takes the Stop flag as samplers do."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0})}}

    def run(self, image, seconds):
        """Work in steps; a Stop between them ends it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            model_management.throw_exception_if_processing_interrupted()
        return (image,)


NODE_CLASS_MAPPINGS = {"TestSampler": TestSampler}
