"""Picture of MLflow's compare page, with what differs alone: `python -m benchmarks.mlflow_page RUN RUN [--port 5000] [--out FILE]`.

Drives a headless chromium through its debugging pipe. MLflow must be running (`mlflow ui --backend-store-uri ... --port 5000`), RUN are the ids of
two runs of the experiment `iot-defense` (`run.json` in each run's folder has its parent's). No result: for docs/tracking.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import ROOT, launch
from src.errors import UserError

WIDTH, HEIGHT = 1300, 1370
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-3d-apis", "--no-first-run", "--disable-background-networking", "--disable-sync")
PREPARE = """
(() => {
  const named = (text) => [...document.querySelectorAll('button, label, span, div')].filter((one) => one.textContent.trim() === text);
  const close = [...document.querySelectorAll('button')].find((one) => /close/i.test(one.getAttribute('aria-label') || ''));
  if (close) close.click();
  document.querySelectorAll('[role=switch]').forEach((one) => { if (one.getAttribute('aria-checked') !== 'true') one.click(); });
  for (const section of ['Visualizations', 'Tags']) named(section)[0]?.click();
  named('comparison.png')[0]?.click();
})()
"""
"""Closes what covers the page, folds the plot (which needs a GPU) and the tags, leaves what differs, and shows a figure of each run."""


class Browser:
    """A headless chromium, spoken to over its debugging pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, profile: str) -> None:
        """Start it."""
        path = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
        if path is None:
            raise UserError("no chromium, chromium-browser or google-chrome on the PATH")
        down, self._out = os.pipe()
        self._in, up = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        words = [path, *FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", "--remote-debugging-pipe", "about:blank"]
        shell = f'exec "$@" 3<&{down} 4>&{up}'
        self._process = subprocess.Popen(["bash", "-c", shell, "bash", *words], pass_fds=(down, up), stderr=subprocess.DEVNULL)
        os.close(down)
        os.close(up)
        self._count, self._rest, self._session = 0, b"", ""

    def call(self, method: str, **params: Any) -> Any:
        """The result of a command."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps({"id": self._count, "method": method, "params": params, **session}).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                got = os.read(self._in, 1 << 20)
                if not got:
                    raise UserError("the browser ended")
                self._rest += got
            message, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(message)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise UserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, url: str) -> None:
        """Show a page."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def run(self, script: str) -> Any:
        """The value of a script in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)


def main() -> None:
    """Open the page, prepare it, and write the picture."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("runs", nargs=2, metavar="RUN", help="id of a run in MLflow")
    words.add_argument("--port", type=int, default=5000, help="where MLflow listens (default: %(default)s)")
    words.add_argument("--experiment", default="1", help="id of the experiment (default: %(default)s)")
    words.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "mlflow_compare.png", help="picture (default: %(default)s)")
    given = words.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            browser.open(f"http://127.0.0.1:{given.port}/#/compare-runs?runs={json.dumps(given.runs)}&experiments={json.dumps([given.experiment])}")
            deadline = time.monotonic() + 60
            while not browser.run("document.querySelectorAll('[role=switch]').length"):
                if time.monotonic() > deadline:
                    raise UserError(f"MLflow on port {given.port} shows no comparison of these runs")
                time.sleep(0.5)
            time.sleep(3)
            browser.run(PREPARE)
            time.sleep(3)
            picture = Image.open(io.BytesIO(base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])))
            picture.convert("RGB").quantize(128).save(given.out, optimize=True)
        finally:
            browser.close()
    print(given.out)


if __name__ == "__main__":
    launch(main)
