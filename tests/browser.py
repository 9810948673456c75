"""A page as a browser draws it: headless Chromium, of the machine's own packages.

It measures itself: a script that is put at the end of a copy of the page writes down where each
element came to lie and in which colour, and Chromium prints the document.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indigo_lab import debian
from indigo_lab.lab import Lab

#: The packages, each with a file by which to know that it is there. Without a font text is empty.
PACKAGES = {
    "chromium": "/usr/bin/chromium",
    "fonts-dejavu-core": "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
}

WIDTH, HEIGHT = 1400, 900

_MEASURE = """<script>
const box = (one) => {
  const {left, top, right, bottom} = one.getBoundingClientRect();
  return {tag: one.tagName, kind: one.getAttribute("class") || "", fill: getComputedStyle(one).fill,
          text: one.tagName === "rect" ? one.textContent : one.textContent.trim(),
          left, top, right, bottom};
};
const page = {
  title: document.title,
  wide: document.documentElement.scrollWidth,
  svg: [...document.querySelectorAll("svg")].map(box),
  parts: [...document.querySelectorAll("svg rect, svg text, h1, td")].map(box),
};
const out = document.createElement("pre");
out.id = "measured";
out.hidden = true;
out.textContent = JSON.stringify(page);
document.body.append(out);
</script>"""


@dataclass(frozen=True)
class Opened:
    """What the browser made of a page; boxes in pixels."""

    title: str
    wide: float
    svg: list[dict[str, Any]]
    parts: list[dict[str, Any]]

    def bars(self, *kinds: str) -> list[dict[str, Any]]:
        """Rectangles of these classes, or all."""
        found = [one for one in self.parts if one["tag"] == "rect"]
        return [one for one in found if not kinds or one["kind"] in kinds]

    def words(self) -> set[str]:
        """All that is written in its pictures."""
        return {one["text"] for one in self.parts if one["tag"] == "text"}

    def cut(self) -> list[str]:
        """Texts and bars that do not lie within the picture, or have no size."""
        (svg,) = self.svg
        return [
            f"{one['tag']} {one['text']}: {one['left']:.0f} to {one['right']:.0f} px"
            for one in self.parts
            if one["tag"] in ("rect", "text")
            and not (
                svg["left"] - 1 <= one["left"] < one["right"] <= svg["right"] + 1
                and svg["top"] - 1 <= one["top"] < one["bottom"] <= svg["bottom"] + 1
            )
        ]


def timeline(lab: Lab, progress: str) -> str:
    """The page of a run, from what its last lines say of where it lies."""
    (path,) = re.findall(r"^timeline: (\S+)$", progress, re.M)
    text = lab.exec("salt", ["cat", path], check=True).stdout
    assert text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>")
    return text


def opened(text: str, folder: Path, name: str = "page") -> Opened:
    """Open a page, and keep a picture of the screen beside it.

    Args:
        text: The page.
        folder: Where its copy, the browser's profile, and ``name.png`` go.
        name: Of the files.
    """
    debian.ensure(PACKAGES)
    page = folder / f"{name}.html"
    page.write_text(text.replace("</body>", f"{_MEASURE}</body>"))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}",
    ]  # fmt: skip
    document = _run([*command, "--dump-dom", page.as_uri()])
    found = re.search(r'<pre id="measured"[^>]*>(.*?)</pre>', document, re.S)
    assert found, document[-2000:]
    _run([*command, f"--screenshot={folder / f'{name}.png'}", page.as_uri()])
    assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    return Opened(**json.loads(html.unescape(found[1])))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
