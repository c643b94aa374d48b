"""The node that takes a video apart: frames, sound, first and last frame."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from comfy_api.latest import Input, InputImpl, io

from . import comfy_bridge

if TYPE_CHECKING:
    from .core.media.clip_file import Selection
    from .core.media.frames import Frames, Tick

FRAMES_OUTPUT = 0


class RunComfyVideoFrames(io.ComfyNode):
    """Frames of a video, within the memory there is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyVideoFrames",
            display_name="Video Frames (RunComfy)",
            category="RunComfy/Kling",
            description="Takes a video apart: its frames, its sound, its first and last frame. "
            "Needs half the memory of other ways, and says so beforehand if that is not free.",
            inputs=[
                io.Video.Input("video", tooltip="A clip from Kling, Load Video or any other node."),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.001,
                    tooltip="Seconds from the first frame on. The first frame taken is the one "
                    "shown then, or the next one.",
                ),
                io.Int.Input(
                    "max_frames",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="How many frames to take at most. 0 takes all.",
                ),
                io.Int.Input(
                    "every_nth",
                    default=1,
                    min=1,
                    max=10_000,
                    tooltip="2 takes every second frame, 3 every third. fps goes down with it, so "
                    "that the speed stays.",
                ),
                io.Int.Input(
                    "max_side",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Scale larger frames down until their longer side has this many "
                    "pixels. 0 keeps them as they are.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "frames",
                    tooltip="The frames. While nothing is wired here, the other outputs cost next "
                    "to no time and memory.",
                ),
                io.Audio.Output(
                    "audio", tooltip="The sound of the same time. Empty if there is none."
                ),
                io.Float.Output("fps", tooltip="Frames per second, for Create Video."),
                io.Int.Output("frame_count", tooltip="How many frames there are."),
                io.Image.Output("first_frame", tooltip="The first of the frames."),
                io.Image.Output(
                    "last_frame", tooltip="The last of the frames, to start the next clip from."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> bool:
        """Whether frames are wanted: a run without them must not be reused for one with them."""
        return comfy_bridge.is_output_wired(FRAMES_OUTPUT)

    @classmethod
    async def execute(
        cls, video: Input.Video, start: float, max_frames: int, every_nth: int, max_side: int
    ) -> io.NodeOutput:
        """Decode what is asked for."""
        from .core.media.clip_file import Selection  # here: importing the pack stays light

        only_ends = not comfy_bridge.is_output_wired(FRAMES_OUTPUT)
        selection = Selection(start, max_frames, every_nth, max_side)
        found = await comfy_bridge.decode(
            lambda tick: read(video, selection, tick=tick, only_ends=only_ends)
        )
        comfy_bridge.show(cls.hidden.unique_id, summary(found))
        heard = found.sound
        return io.NodeOutput(
            found.images,
            heard and {"waveform": heard.waveform, "sample_rate": heard.sample_rate},
            found.fps,
            found.count,
            found.first,
            found.last,
        )


def read(video: Input.Video, selection: Selection, *, tick: Tick, only_ends: bool) -> Frames:
    """Frames of any video that a node can hand over, from its file where it has one."""
    from .core.media import frames, held
    from .core.media.clip_file import ClipFile
    from .core.media.sound import Sound

    if isinstance(video, InputImpl.VideoFromFile):
        start_s, duration_s = trim(video)
        clip = ClipFile(video.get_stream_source(), start_s, duration_s)
        return frames.read(clip, selection, tick=tick, only_ends=only_ends)
    parts = video.get_components()
    heard = parts.audio and Sound(parts.audio["waveform"], int(parts.audio["sample_rate"]))
    fps = float(Fraction(parts.frame_rate))
    return held.select(parts.images, heard, fps, selection, tick=tick)


def trim(video: InputImpl.VideoFromFile) -> tuple[float, float]:
    """Start and length in seconds of the part that counts; length 0 is to the end."""
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    # ComfyUI 0.18 keeps them to itself
    start, duration = (
        getattr(video, f"_VideoFromFile__{name}") for name in ("start_time", "duration")
    )
    if start < 0:
        start = max(video._get_raw_duration() + start, 0.0)
    return float(start), float(duration)


def summary(found: Frames) -> str:
    """What the node says about itself."""
    _, height, width, _ = found.first.shape
    plural = "frame" if found.count == 1 else "frames"
    facts = [f"{found.count} {plural}", f"{width} × {height}", f"{found.fps:.6g} fps"]
    if found.images is not None:
        facts.append(f"{found.images.nbytes / 1e9:.2f} GB")
    if found.sound is None:
        facts.append("no sound")
    return "\n".join([", ".join(facts), *found.notes])
