"""What ComfyUI loads: the list of nodes."""

from comfy_api.latest import ComfyExtension, io


class RunComfyKlingExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of the menu."""
        # here, not above: importing the pack itself stays light
        from .kling_collect import RunComfyKlingCollect
        from .kling_element import RunComfyKlingElement
        from .kling_image_to_video import RunComfyKlingImageToVideo
        from .kling_submit import RunComfyKlingSubmit
        from .upload_image import RunComfyUploadImage
        from .video_frames import RunComfyVideoFrames

        return [
            RunComfyKlingImageToVideo,
            RunComfyKlingSubmit,
            RunComfyKlingCollect,
            RunComfyKlingElement,
            RunComfyUploadImage,
            RunComfyVideoFrames,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI calls this once, when it loads the pack."""
    from . import comfy_bridge, routes

    routes.register()
    comfy_bridge.collect_unfinished()
    return RunComfyKlingExtension()
