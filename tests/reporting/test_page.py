"""The page's colors, and the page in a browser."""

import re
import shutil
import subprocess
import sys
from importlib.resources import files

import pytest

from coadapt.reporting import collect, render
from tests.reporting.test_studies import SHARING, write_cell, write_study

CSS = (files("coadapt.reporting") / "report.css").read_text(encoding="utf-8")
LIGHT, DARK, PRINT = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in CSS.split(":root")[1:]
)
# On paper what the dark screen has does not hold, so the light theme's colors are below its own.
THEMES = {"light": LIGHT, "dark": LIGHT | DARK, "print": LIGHT | PRINT}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def rgb(color):
    return [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]


def luminance(channels):
    """WCAG 2.2, relative luminance of sRGB."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_the_standard_s():
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


def test_dark_is_for_screens():
    before = re.findall(r"@media ([^{]+) \{\s*:root", CSS)
    assert before == ["screen and (prefers-color-scheme: dark)", "print"]


@pytest.mark.parametrize("name", THEMES)
def test_text_and_lines_stand_out(name):
    theme = THEMES[name]
    paper, wash, ink = (rgb(theme[name]) for name in ("paper", "wash", "ink"))
    for name in ("ink", "quiet", "series-1"):  # text; the last is a link's
        assert contrast(rgb(theme[name]), paper) >= 4.5
        assert contrast(rgb(theme[name]), wash) >= 4.5
    for index in range(1, 8):
        color = rgb(theme[f"series-{index}"])
        assert contrast(color, paper) >= 4.5
        # The numbers in a heat map's strongest cell, whose opacity is 0.5.
        cell = [0.5 * c + 0.5 * p for c, p in zip(color, paper, strict=True)]
        if index <= 2:
            assert contrast(ink, cell) >= 4.5
    assert contrast(rgb(theme["faint"]), paper) >= 3  # lines that guide


REPORT = """
import sys
from coadapt.cli import app

app(["report", sys.argv[1], "--diagnosis", sys.argv[2]], standalone_mode=False)
unused = {"torch", "transformers", "peft", "datasets", "sklearn", "accelerate"} & set(sys.modules)
assert not unused, f"a report needs no {sorted(unused)}"
"""


def test_a_report_does_not_wait_for_torch(tmp_path):
    folder = write_study(tmp_path / "study")
    write_cell(folder)
    diagnosis = SHARING.parent / "demo_diagnosis.json"
    command = [sys.executable, "-c", REPORT, str(folder), str(diagnosis)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "report.html").is_file()


def asked_by(page, folder):
    """Show a page in the browser; return its elements as text, and the hosts that were asked."""
    log = folder / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    command = [str(BROWSER), *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    hosts = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text(encoding="utf-8")))
    # Its maker's are what the browser asks for itself.
    return done.stdout, {host for host in hosts if not host.endswith(".google.com")}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_without_the_network(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(collect(SHARING)), encoding="utf-8")
    shown, hosts = asked_by(page, tmp_path)
    assert "Setting by setting" in shown
    assert hosts == set()
    # A picture from elsewhere would be seen.
    page.write_text('<img src="http://elsewhere.invalid/x.png">', encoding="utf-8")
    assert asked_by(page, tmp_path)[1] == {"elsewhere.invalid"}
