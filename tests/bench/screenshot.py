"""`python -m tests.bench screenshot PAGE FILE.png`: a picture of a report or a live page, for the README."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from wpray.cli.arguments import file_to_write, whole
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_COLOURS = 256  # few, because a repository keeps every version of a picture for ever
_SETTLED_MS = 3000
_PATIENCE_S = 120


def main(argv: Sequence[str]) -> int:
    """Write the picture. Raise BadInputError without a browser, or for a page that it does not show."""
    parser = ArgumentParser(prog="python -m tests.bench screenshot", description="Take a picture of a page.")
    parser.add_argument("page", help="report.html, or the address of a live page")
    parser.add_argument("file", type=file_to_write, metavar="FILE.png")
    parser.add_argument("--width", type=whole(100, 4000), default=1100, help="of the window, in pixels (1100)")
    parser.add_argument("--height", type=whole(100, 10_000), default=1000, help="of the window, in pixels (1000)")
    options = parser.parse_args(list(argv))
    address = options.page if "://" in options.page else Path(options.page).absolute().as_uri()
    picture = Image.open(io.BytesIO(_shown(address, options.width, options.height)))
    picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(options.file, optimize=True)
    return 0


def _shown(address: str, width: int, height: int) -> bytes:
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise BadInputError("no Chromium was found; as root: apt-get install -y chromium")
    with tempfile.TemporaryDirectory() as home:
        picture = Path(home) / "picture.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}"]
        size = [f"--window-size={width},{height}", f"--virtual-time-budget={_SETTLED_MS}"]
        command = [browser, *flags, *size, f"--screenshot={picture}", address]
        subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
        if not picture.exists():
            raise BadInputError(f"{address}: the browser shows nothing")
        return picture.read_bytes()
