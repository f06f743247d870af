"""Pictures of pages: small, of the asked size, and only of what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.bench import screenshot
from tests.results.recorded import write_run
from wpray.cli.command import run_command
from wpray.report.page import write_report

IMAGES = Path(__file__).parents[2] / "notebooks" / "images"


def test_a_report_is_pictured(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in screenshot._BROWSERS):
        pytest.skip("no Chromium (apt-get install chromium)")
    write_run(tmp_path / "run", [[True, False]])
    picture = tmp_path / "picture.png"
    argv = [str(write_report(tmp_path / "run")), str(picture), "--width", "700", "--height", "500"]
    assert run_command(screenshot.main, argv) == 0
    with Image.open(picture) as image:
        assert image.size == (700, 500) and len(image.convert("RGB").getcolors(10_000) or []) > 5


def test_without_a_browser_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run_command(screenshot.main, ["page.html", str(tmp_path / "picture.png")]) == 2
    assert "apt-get install -y chromium" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(IMAGES.iterdir()), ids=lambda path: path.name)
def test_the_pictures_of_the_repository_are_small(path: Path) -> None:
    assert path.stat().st_size < 150_000
