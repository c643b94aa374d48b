"""What media cost: `COMFYUI_DIR=… python tests/bench_media.py`, Linux, about 12 minutes.

Frames against ComfyUI's own decoder, start images against Pillow's default PNG, decoding against
plain decoding; the memory of each. Every figure is the median of rounds (7, or `--rounds`), each in
a process of its own, the candidates one after the other within a round, so that a busy machine is
busy for all of them. `--only frames,images,other` runs a part, `--no-long` leaves out the clip that
takes 11 GB. Ends with each target and whether it is met; exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINE = Path(os.environ.get("COMFYUI_DIR") or ROOT / ".engine" / "ComfyUI")
PICTURE = ROOT / "example_workflows" / "image_to_video.jpg"
CLIPS = {  # width, height, frames a second, seconds
    "720p24 10 s": (1280, 720, 24, 10),
    "1080p30 5 s": (1920, 1080, 30, 5),
}
LONG = "1080p30 15 s"
LONG_LIMIT_MB = 13_000
DOWNLOAD_MB = 300

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack


# --- what a child process measures ------------------------------------------------------------


def measured(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds, and peak memory over what there was before, in MB."""
    gc.collect()
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.perf_counter()
    result = work()
    taken = time.perf_counter() - began
    return {"s": taken, "peak_mb": status_mb("VmHWM") - before}, result


def status_mb(name: str) -> float:
    """A memory figure of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def child_core(path: str) -> dict[str, float]:
    """ComfyUI's get_components()."""
    sys.path.insert(0, str(ENGINE))
    video_types = importlib.import_module("comfy_api.latest._input_impl.video_types")
    found, parts = measured(lambda: video_types.VideoFromFile(path).get_components())
    return {**found, "tensor_mb": parts.images.nbytes / 1e6}


def child_frames(path: str) -> dict[str, float]:
    """Ours, the whole clip."""
    frames = importlib.import_module("pack.nodes.core.media.frames")
    clip_file = importlib.import_module("pack.nodes.core.media.clip_file")

    def read() -> Any:
        clip, selection = clip_file.ClipFile(path), clip_file.Selection()
        return frames.read(clip, selection, tick=lambda done, total: None)

    found, read_ones = measured(read)
    tensor_mb = read_ones.images.nbytes / 1e6
    del read_ones
    left = status_mb("VmRSS")
    return {
        **found,
        "tensor_mb": tensor_mb,
        "left_mb": left - (status_mb("VmHWM") - found["peak_mb"]),
    }


def child_ends(path: str) -> dict[str, float]:
    """The node with only last_frame wired: sound, first and last frame."""
    frames = importlib.import_module("pack.nodes.core.media.frames")
    clip_file = importlib.import_module("pack.nodes.core.media.clip_file")
    clip, selection = clip_file.ClipFile(path), clip_file.Selection()
    return measured(
        lambda: frames.read(clip, selection, tick=lambda done, total: None, only_ends=True)
    )[0]


def child_last(path: str) -> dict[str, float]:
    """The Kling nodes' last_frame."""
    video = importlib.import_module("pack.nodes.core.media.video")
    return measured(lambda: video.last_frame(Path(path)))[0]


def child_plain(path: str) -> dict[str, float]:
    """Decoding alone, nothing converted: the floor."""
    av = importlib.import_module("av")

    def decode() -> int:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            return sum(1 for _ in container.decode(stream))

    return measured(decode)[0]


def child_memory(size: str) -> dict[str, float]:
    """Being given a tensor's memory, nothing in it: the other floor."""
    torch = importlib.import_module("torch")
    return measured(lambda: torch.empty(int(size)).fill_(0.0))[0]


def child_image(path: str) -> dict[str, float]:
    """A 4K start image, ready to send, at RunComfy's inline limit and at Kling's own; its hash."""
    images = importlib.import_module("pack.nodes.core.media.images")
    np, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    pil = importlib.import_module("PIL.Image")
    pixels = np.load(path)
    image = torch.from_numpy(pixels).float() / 255

    def default_png() -> int:
        buffer = io.BytesIO()
        pil.fromarray(pixels).save(buffer, "PNG")
        return buffer.tell()

    found: dict[str, float] = {}
    for name, limit in (("inline", 6 << 20), ("kling", 10_000_000), ("lossless", 1 << 30)):
        timing, encoded = measured(
            lambda limit=limit: images.encode(images.check(image, "x"), max_bytes=limit)
        )
        found[f"{name}_s"], found[f"{name}_mb"] = timing["s"], len(encoded.data) / 1e6
        found[f"{name}_peak_mb"] = timing["peak_mb"]
    timing, size = measured(default_png)
    found["default_png_s"], found["default_png_mb"] = timing["s"], size / 1e6
    found["check_s"] = measured(lambda: images.check(image, "x"))[0]["s"]
    checked = images.check(image, "x")
    found["hash_s"] = measured(checked.fingerprint)[0]["s"]
    return found


def child_download(url: str) -> dict[str, float]:
    """A large clip to disk, as the jobs fetch it."""
    download = importlib.import_module("pack.nodes.core.download")
    transport = importlib.import_module("pack.nodes.core.transport")
    origin = url.rpartition("/")[0]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "clip.part"
        one = transport.Transport(origin, "token")
        download.download(one, f"{origin}/small", part, wait=time.sleep)  # imports, first buffers
        found, _ = measured(lambda: download.download(one, url, part, wait=time.sleep))
        assert part.stat().st_size == DOWNLOAD_MB * 1_000_000
        return found


def child_import(_: str) -> dict[str, float]:
    """The pack's import by a ComfyUI that is loaded: its module, its entry point, its nodes."""
    engine_module = importlib.import_module("engine_in_process")
    taken: dict[str, float] = {}
    load = engine_module.Engine._load

    def timed(self: Any, path: Path, parent: str) -> None:
        if path.name != "runcomfy-kling":
            return
        # read for each pack's pyproject.toml, imported for the first: ComfyUI's own 20 ms
        importlib.import_module("comfy_config.config_parser")
        timing, _ = measured(lambda: load(self, path, parent))
        taken.update(timing)

    engine_module.Engine._load = timed
    with tempfile.TemporaryDirectory() as folder:
        engine_module.Engine(ENGINE, Path(folder))
    return taken


# --- files ------------------------------------------------------------------------------------


def photo(width: int, height: int, seed: int = 1) -> Any:
    """A photograph: the example picture, enlarged, with texture of several sizes and grain."""
    np, pil = importlib.import_module("numpy"), importlib.import_module("PIL.Image")
    with pil.open(PICTURE) as opened:
        base = np.asarray(opened.convert("RGB").resize((width, height), pil.Resampling.BICUBIC))
    dice = np.random.default_rng(seed)
    texture = np.zeros((height, width), np.float32)
    for size in (1, 2, 4, 8, 16):
        grain = dice.normal(0, 1, (height // size + 1, width // size + 1)).astype(np.float32)
        scaled = pil.fromarray(grain).resize((width, height), pil.Resampling.BICUBIC)
        texture += np.asarray(scaled) * size**0.6
    pixels = base + 2 * texture[:, :, None] + dice.normal(0, 1, base.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def write_clip(path: Path, width: int, height: int, fps: int, seconds: int) -> None:
    """A camera that moves over a photograph, H.264 and AAC, one keyframe in 250 as x264 has it."""
    av, np = importlib.import_module("av"), importlib.import_module("numpy")
    clip_maker = importlib.import_module("clip_maker")
    wide = photo(width + 256, height + 128)
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=Fraction(fps))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": "20", "preset": "veryfast"}
        sound = file.add_stream("aac", rate=44100, layout="stereo")
        for number in range(fps * seconds):
            x, y = abs(256 - (2 * number) % 512), abs(128 - number % 256)
            view = np.ascontiguousarray(wide[y : y + height, x : x + width])
            file.mux(video.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        file.mux(video.encode())
        clip_maker.write_sound(file, sound, clip_maker.tone(seconds, 2))


class Clips(BaseHTTPRequestHandler):
    """Serves a file of DOWNLOAD_MB from nowhere, or a small one."""

    def do_GET(self) -> None:
        """Send it piece by piece."""
        pieces = 1 if self.path.endswith("small") else DOWNLOAD_MB
        self.send_response(200)
        self.send_header("Content-Length", str(pieces * 1_000_000))
        self.end_headers()
        piece = os.urandom(1_000_000)
        for _ in range(pieces):
            self.wfile.write(piece)

    def log_message(self, *_: Any) -> None:
        """Quietly."""


# --- rounds -----------------------------------------------------------------------------------


class Rounds:
    """Runs children, keeps their figures, and gives medians."""

    def __init__(self) -> None:
        self.figures: dict[tuple[str, str], list[dict[str, float]]] = {}

    def run(self, kind: str, argument: str, name: str = "") -> dict[str, float]:
        """One child, in a process of its own."""
        command = [sys.executable, __file__, "--child", kind, argument]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests")
        if done.returncode:
            raise SystemExit(
                f"{kind} {argument} failed ({done.returncode}):\n{done.stderr[-3000:]}"
            )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        self.figures.setdefault((kind, name or argument), []).append(found)
        return found

    def median(self, kind: str, name: str, figure: str = "s") -> float:
        """Of all rounds."""
        return statistics.median(one[figure] for one in self.figures[kind, name])

    def line(self, kind: str, name: str, figure: str = "s", unit: str = "s") -> str:
        """Minimum, median and maximum."""
        values = sorted(one[figure] for one in self.figures[kind, name])
        middle = statistics.median(values)
        form = "{:,.0f} / {:,.0f} / {:,.0f}" if unit == "MB" else "{:.3f} / {:.3f} / {:.3f}"
        return f"{form.format(values[0], middle, values[-1]):>28} {unit}"


TARGETS: list[tuple[bool, str]] = []


def target(name: str, value: float, limit: float, unit: str = "") -> None:
    """Note a target and whether it is met."""
    TARGETS.append((value <= limit, f"{name}: {value:.3g}{unit} (at most {limit:g}{unit})"))


def bench_frames(rounds: Rounds, folder: Path, count: int, long: bool) -> None:
    """Frames, their memory, and the last frame alone."""
    files = {}
    for name, shape in CLIPS.items():
        files[name] = folder / f"{shape[1]}.mp4"
        write_clip(files[name], *shape)
    kinds = ["core", "frames", "plain", "last", "ends"]
    for number in range(count):
        for name, path in files.items():
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                rounds.run(kind, str(path), name)
            width, height, fps, seconds = CLIPS[name]
            rounds.run("memory", str(width * height * 3 * fps * seconds), name)
        print(f"  round {number + 1} of {count} of frames is done", flush=True)
    print("\nFrames (min / median / max of rounds)")
    for name in CLIPS:
        tensor_mb = rounds.median("frames", name, "tensor_mb")
        print(f"  {name}, tensor {tensor_mb:,.0f} MB")
        for kind, text in (
            ("core", "ComfyUI get_components()"),
            ("frames", "ours"),
            ("plain", "decoding alone"),
            ("memory", "the tensor's memory alone"),
            ("last", "last_frame of the Kling node"),
            ("ends", "Video Frames, last_frame wired"),
        ):
            seconds = rounds.line(kind, name)
            print(f"    {text:32}{seconds}  {rounds.line(kind, name, 'peak_mb', 'MB')} peak")
        core, ours = rounds.median("core", name), rounds.median("frames", name)
        plain = rounds.median("plain", name)
        peak = rounds.median("frames", name, "peak_mb") / tensor_mb
        core_peak = rounds.median("core", name, "peak_mb") / tensor_mb
        print(f"    ours: {ours / core:.2f} x ComfyUI's time, {ours / plain:.2f} x decoding alone")
        print(f"    peak: {peak:.3f} x the tensor (ComfyUI {core_peak:.2f} x)")
        left = rounds.line("frames", name, "left_mb", "MB")
        print(f"    {'left once the tensor is gone':32}{left}")
        target(f"{name}: frames, x ComfyUI's time", ours / core, 0.6)
        target(f"{name}: frames, peak x the tensor", peak, 1.1)
        target(f"{name}: last_frame, x get_components()", rounds.median("last", name) / core, 0.05)
    if long:
        path = folder / "long.mp4"
        write_clip(path, 1920, 1080, 30, 15)
        found = rounds.run("frames", str(path), LONG)
        print(f"  {LONG}: {found['s']:.1f} s, peak {found['peak_mb']:,.0f} MB")
        target(f"{LONG}: peak", found["peak_mb"], LONG_LIMIT_MB, " MB")


def bench_images(rounds: Rounds, folder: Path, count: int) -> None:
    """A 4K start image."""
    np = importlib.import_module("numpy")
    path = folder / "photo.npy"
    np.save(path, photo(3840, 2160))
    for _ in range(count):
        rounds.run("image", str(path), "4K photo")
    print("\nA 4K start image, photo-like (min / median / max of rounds)")
    default = rounds.median("image", "4K photo", "default_png_s")
    for name, text in (
        ("default_png", "Pillow's default PNG"),
        ("inline", "ready, inline limit 6 MiB"),
        ("kling", "ready, Kling's limit 10 MB"),
        ("lossless", "ready, as PNG without a limit"),
        ("check", "of which rounding to 8 bit"),
        ("hash", "identity hash"),
    ):
        seconds = rounds.median("image", "4K photo", f"{name}_s")
        has_size = f"{name}_mb" in rounds.figures["image", "4K photo"][0]
        size = f"{rounds.median('image', '4K photo', f'{name}_mb'):6.2f} MB" if has_size else ""
        line = rounds.line("image", "4K photo", f"{name}_s")
        print(f"  {text:32}{line}  {seconds / default:5.2f} x  {size}")
    for name, text in (("inline", "6 MiB"), ("kling", "10 MB")):
        ratio = rounds.median("image", "4K photo", f"{name}_s") / default
        target(f"4K start image ready, {text}, x default PNG", ratio, 0.35)
    target("identity hash of a 4K frame", rounds.median("image", "4K photo", "hash_s"), 0.3, " s")


def bench_other(rounds: Rounds, count: int) -> None:
    """Download memory, and the pack's import."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Clips)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/clip.mp4"
    for _ in range(count):
        rounds.run("download", url, "download")
        rounds.run("import", "-", "import")
    server.shutdown()
    print(f"\nDownload of {DOWNLOAD_MB} MB, and the pack's import (min / median / max of rounds)")
    print(f"  download                        {rounds.line('download', 'download')}")
    print(
        f"  its peak memory                 {rounds.line('download', 'download', 'peak_mb', 'MB')}"
    )
    print(f"  import by a loaded ComfyUI      {rounds.line('import', 'import')}")
    target("download, peak", rounds.median("download", "download", "peak_mb"), 20, " MB")
    target("pack import", 1000 * rounds.median("import", "import"), 80, " ms")


def main() -> int:
    """All rounds, then the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="frames,images,other")
    parser.add_argument("--no-long", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, argument = options.child
        print(json.dumps(globals()[f"child_{kind}"](argument)))
        return 0
    psutil = importlib.import_module("psutil")
    versions = {name: importlib.import_module(name).__version__ for name in ("av", "torch", "PIL")}
    print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.1f} GB, {versions}")
    print(f"load before: {os.getloadavg()}", flush=True)
    rounds, parts = Rounds(), options.only.split(",")
    long = not options.no_long and psutil.virtual_memory().available > LONG_LIMIT_MB * 1e6
    with tempfile.TemporaryDirectory() as folder:
        if "frames" in parts:
            bench_frames(rounds, Path(folder), options.rounds, long)
        if "images" in parts:
            bench_images(rounds, Path(folder), options.rounds)
        if "other" in parts:
            bench_other(rounds, options.rounds)
    print(f"\nload after: {os.getloadavg()}\n\nTargets, medians of {options.rounds} rounds")
    if "frames" in parts and not long:
        print(f"  left out  {LONG}: by --no-long, or less than 13 GB are free")
    for met, text in TARGETS:
        print(f"  {'met     ' if met else 'NOT MET '}  {text}")
    return 0 if all(met for met, _ in TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
