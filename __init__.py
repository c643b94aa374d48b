"""RunComfy Kling: Kling 3.0 image-to-video on RunComfy, as ComfyUI nodes."""

from .nodes.extension import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
