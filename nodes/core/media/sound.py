"""A clip's sound, cut to the time of its frames."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av
import numpy as np
import torch

from .clip_file import ClipFile, decode

WARM_UP_S = 1  # AAC needs the packets before the first one to be heard
SEEK_FROM_S = 5  # below that, reading from the start costs no more than seeking


@dataclass(frozen=True)
class Sound:
    """``waveform``: ``[1, channels, samples]`` float32, -1 to 1; ``sample_rate`` per second."""

    waveform: torch.Tensor
    sample_rate: int

    def cut(self, start: int, end: int | None) -> "Sound":
        """The samples from ``start`` up to ``end``, sharing memory."""
        return Sound(self.waveform[:, :, start:end], self.sample_rate)


def read(
    clip: ClipFile, start_s: Fraction, end_s: Fraction | None, *, look: Callable[[], None]
) -> Sound | None:
    """The sound from ``start_s`` to ``end_s`` of the file's own time; None to its end.

    Where it starts later than that, silence comes first, so that it stays with the pictures.
    None where there is no sound, none in that time, or none that decodes. ``look`` is called for
    each piece that was decoded.
    """
    pieces: list[np.ndarray] = []
    with clip.open() as container:
        # the last one, as ComfyUI takes it; a stream without a decoder would crash the process
        stream = next((s for s in reversed(container.streams.audio) if s.codec_context), None)
        if stream is None:
            return None
        if start_s > SEEK_FROM_S:
            container.seek(round((start_s - WARM_UP_S) / stream.time_base), stream=stream)
        rate, samples, wanted = 0, 0, None
        resample = av.AudioResampler(format="fltp").resample
        for frame in chain.from_iterable(map(resample, decode(container, stream))):
            look()
            data = frame.to_ndarray()
            rate = rate or int(frame.sample_rate)
            if not pieces:
                at_s = frame.pts * frame.time_base if frame.pts is not None else 0
                skipped = round((start_s - at_s) * rate)
                if skipped >= frame.samples:
                    continue
                wanted = None if end_s is None else round((end_s - start_s) * rate)
                if skipped < 0:
                    data = np.pad(data, ((0, 0), (-skipped, 0)))
                data = data[:, max(0, skipped) :]
            pieces.append(data)
            samples += data.shape[1]
            if wanted is not None and samples >= wanted:
                break
    if not pieces:
        return None
    waveform = np.concatenate(pieces, axis=1)[:, :wanted]
    return Sound(torch.from_numpy(waveform).unsqueeze(0), rate) if waveform.size else None
