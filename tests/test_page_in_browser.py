"""A check's page in a real browser: nothing wider than the screen, no error, at three widths, by day and by night.

Skipped where no chromium is installed.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import normscope as ns

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

PROBE = """<script>
const wrong = [];
window.onerror = message => wrong.push(message);
window.onload = () => {
  for (const e of document.querySelectorAll("body *"))
    if (!e.closest(".picture") && e.getBoundingClientRect().right > innerWidth + 1)
      wrong.push("too wide: " + e.tagName + " " + e.textContent.trim().slice(0, 40));
  for (const svg of document.querySelectorAll("svg")) {
    if (!svg.getAttribute("aria-label")) wrong.push("an SVG without a description");
    for (const axes of svg.querySelectorAll("g[id*=axes_]"))
      if (!axes.querySelector("g[id*=line2d] path, image, g[id*=Collection]")) wrong.push("empty axes");
  }
  for (const a of document.querySelectorAll("a[href^='#']"))
    if (!document.getElementById(a.hash.slice(1))) wrong.push("no anchor " + a.hash);
  document.title = "RESULT " + innerWidth + " " + JSON.stringify(wrong);
};
</script>"""


def browser(*options: str) -> str:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    data = ns.load_data("digits")

    def build(seed: int):
        return ns.build_net("mlp4", norm="none", in_channels=1, image_size=8, seed=seed)

    tree = ns.check(build, lambda s: ns.batches(data, 32, seed=s), repair=["batch"], steps=20, seeds=1, workers=1)
    path = ns.report(tree, tmp_path_factory.mktemp("page") / "report.html")
    path.write_text(path.read_text().replace("<head>", "<head>" + PROBE, 1))
    return path


@pytest.mark.parametrize("width", [400, 900, 1600])
@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_nothing_is_wider_than_the_screen_and_no_axes_are_empty(page, width, scheme):
    dom = browser(
        f"--window-size={width},1200", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", page.as_uri()
    )
    found = re.search(r"<title>RESULT (\d+) (.*?)</title>", dom)
    assert found, "the page's script did not end"
    assert (int(found[1]) <= max(width, 500), found[2]) == (True, "[]")


def test_it_prints(page, tmp_path):
    browser("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
