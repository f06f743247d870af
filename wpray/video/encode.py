"""Encoding of frames as an MP4 that every browser plays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio

from wpray.types import ImageArray

_OUTPUT = ["-pix_fmt", "yuv420p", "-crf", "20", "-preset", "medium", "-movflags", "+faststart", "-threads", "1"]


def encode(frames: Iterable[ImageArray], fps: int, keyframe_every: int = 250) -> bytes:
    """Return an MP4's bytes. Frames are (H, W, 3) uint8 of one size, with even H and W.

    Fewer frames from one key frame to the next make a single frame quicker to read and the file larger.
    """
    with tempfile.TemporaryDirectory(prefix="wpray-video-") as folder:
        path = Path(folder, "video.mp4")
        writer: Any = imageio.get_writer(
            path,
            format="FFMPEG",
            fps=fps,
            codec="libx264",
            quality=None,
            pixelformat="yuv420p",
            macro_block_size=2,
            output_params=[*_OUTPUT, "-g", str(keyframe_every)],
            ffmpeg_log_level="error",
        )
        with writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()
