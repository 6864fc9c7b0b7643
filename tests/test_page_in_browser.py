"""Pages in a real browser, at three widths, by day and by night: nothing wider than the screen, nothing on something
else, text of a contrast of 4.5 (WCAG AA), no empty axes, no error; of a model that is broken, sound, or gives NaN.

Skipped where no chromium is installed.
"""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import normscope as ns

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

PROBE = f"<script>{(Path(__file__).parent / 'page_probe.js').read_text()}</script>"


OFFLINE = [
    f"--disable-{name}" for name in ("background-networking", "component-update", "sync", "quic", "default-apps")
]
"""Without a network a browser has nobody to ask."""


def browser(*options: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        own = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        command = [str(CHROMIUM), *own, *OFFLINE, "--timeout=30000", *options]  # else some wait for ever to be loaded
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def broken(seed: int) -> nn.Module:
    """Twelve layers that explode along a step; some logits are large from the start."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear").data.mul_(2)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


def sound(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


class Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


def not_finite(seed: int) -> nn.Module:
    return nn.Sequential(sound(seed), Logarithm())


PAGES = {broken: ["batch", "zero_residual"], sound: [], not_finite: []}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    data = ns.load_data("digits")
    for build, repair in PAGES.items():
        tree = ns.check(build, lambda s: ns.batches(data, 32, seed=s), repair=repair, steps=20, seeds=1, workers=1)
        path = ns.report(tree, folder / f"{build.__name__}.html")
        path.write_text(path.read_text().replace("<head>", "<head>" + PROBE, 1))
    return folder


LOOKS = [
    *(("broken", width, scheme) for width in (400, 900, 1600) for scheme in ("dark", "light")),
    *((name, *look) for name in ("sound", "not_finite") for look in ((400, "dark"), (900, "light"))),
]


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_a_page_has_nothing_wrong(pages, name, width, scheme):
    options = f"--window-size={width},1200", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    assert faults(browser(*options, "--dump-dom", (pages / f"{name}.html").as_uri()), width) == []


def faults(dom: str, width: int) -> list[str]:
    """What the page's script found; it ran at that width, or at the browser's least."""
    found = re.search(r"<title>RESULT (\d+) (.*?)</title>", dom)
    assert found, "the page's script did not end"
    assert int(found[1]) <= max(width, 500)
    return json.loads(html.unescape(found[2]))


def test_the_script_finds_what_is_wrong(tmp_path):
    """So that it can fail: pale text, a wide block, one block on another, a link to nowhere, an error."""
    bad = """<p style="color: #999">pale</p>
    <div style="width: 3000px">wide</div><p>one</p><p style="margin-top: -50px">on it</p>
    <a href="#gone">gone</a>
    <svg><g id="axes_1"></g><g id="text_1"><path style="fill: #999"/></g></svg>
    <script>console.error("oh"); nowhere()</script>"""
    (tmp_path / "bad.html").write_text(f"<html><head>{PROBE}</head><body>{bad}</body></html>")
    found = " ".join(faults(browser("--window-size=900,800", "--dump-dom", (tmp_path / "bad.html").as_uri()), 900))
    for word in (
        "contrast 2.",
        "contrast in a picture 2.",
        "too wide",
        "overlap",
        "no anchor #gone",
        "description",
        "empty axes",
        "oh",
        "nowhere",
    ):
        assert word in found, word


def test_it_prints(pages, tmp_path):
    browser("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", (pages / "broken.html").as_uri())
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 4, "no page is half empty"
