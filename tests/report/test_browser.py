"""The report in a real browser: no console error, charts drawn, a video plays."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.results.recorded import write_run
from wpray.report.page import write_report
from wpray.results.merge import merge
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder
from wpray.video.encode import encode

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt-get install chromium)")

# Added to the page by this test: measures the charts, plays a video, and writes the results into the title.
_PROBE = """<script>
const charts = [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 50).length;
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const video = document.querySelectorAll('video')[WHICH];
const report = played => { document.title = `charts=${charts} overflow=${wide} played=${played}`; };
report('no');
video.addEventListener('timeupdate', () => { if (video.currentTime > 0.2) report('yes'); });
video.muted = true;
video.play().catch(error => report(error.name));
</script>"""


@pytest.mark.parametrize(("which", "embed_bytes"), [(0, 10**7), (1, 0)], ids=["embedded", "linked"])
def test_the_page_loads_and_a_video_plays(tmp_path: Path, which: int, embed_bytes: int) -> None:
    run = tmp_path / "a run"
    write_run(run, [[True, False, None], [True, True, False]])
    videos = VideoFolder.of(run, None)
    videos.path.mkdir()
    clip = encode([np.full((64, 128, 3), 6 * n, np.uint8) for n in range(40)], fps=10)
    for name in ("rollout_move_the_cube_0_t0_success.mp4", "rollout_move_the_cube_0_t1_failure.mp4"):
        (videos.path / name).write_bytes(clip)
    merge(RunFolder(run), videos)
    page = write_report(run, embed_bytes=embed_bytes)
    _, untouched = _open(page)
    assert "CONSOLE" not in untouched
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    probed = page.with_name("probed.html")
    probed.write_text(html.replace("</body>", _PROBE.replace("WHICH", str(which)) + "</body>"))
    dom, log = _open(probed)
    assert "CONSOLE" not in log
    assert re.findall(r"<title>(charts=.*?)</title>", dom) == ["charts=8 overflow=false played=yes"]


def test_a_narrow_window_scrolls_charts_not_the_page(tmp_path: Path) -> None:
    outcomes, name = [[True, False, None], [True, True, False]], "a.module.with.a.long.name" * 3
    write_run(tmp_path / "run", outcomes, policy=name, bonus=0.5)  # which adds a section
    page = write_report(tmp_path / "run")
    probe = """<script>
        const overflows = part => part.scrollWidth > part.clientWidth;
        const [page, chart] = [document.documentElement, document.querySelector('.plot')];
        document.title = `overflow=${overflows(page)} scrolls=${overflows(chart)}`;
        </script></body>"""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    page.write_text(html.replace("</body>", probe))
    dom, _ = _open(page, width=500)
    assert re.findall(r"<title>(overflow=.*?)</title>", dom) == ["overflow=false scrolls=true"]


def _open(page: Path, width: int = 1160) -> tuple[str, str]:
    """Return the page's DOM after some seconds, and the browser's log."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--window-size={width},2000",
    ]
    profile = page.parent.parent / "profile"
    command = [
        BROWSER or "",
        *options,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
