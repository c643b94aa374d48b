"""The nodes, and everything behind them.

extension.py              the list of nodes that ComfyUI loads
kling_image_to_video.py   one file a node: schema and one short execute
upload_image.py           likewise; its work is in uploading.py
routes.py                 what the pack adds to ComfyUI's own server
comfy_bridge.py           the only file that touches ComfyUI's internals
core/                     plain Python: API, limits, media, jobs
rehearsal/                the local stand-in of RunComfy's API: free, offline, real HTTP
"""
