"""The picture of the page in the docs: a server, headless Chromium, and a conversation about a picture.

    python benchmarks/page_screenshot.py --ckpt checkpoints/… --image scene.png --ask "What is in the picture?" [--audio question.wav] --out
    docs/page.png

Needs the extra `browser`, Chromium and its driver. A sound is sent as the last question.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0


def wait(condition: Callable[[], Any]) -> Any:
    """The first true result."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > until:
            raise SystemExit("the page took too long")
        time.sleep(0.1)
    return found


def serve(checkpoint: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The server's process and address."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "omni.cli", "serve", "--ckpt", str(checkpoint), "--port", "0"], stderr=file)
    wait(lambda: process.poll() is not None or " on http://" in log.read_text())
    if process.poll() is not None:
        raise SystemExit(log.read_text())
    return process, log.read_text().split(" on ")[-1].split()[0]


def converse(url: str, profile: str, image: Path, questions: list[str], audio: Path | None, out: Path) -> None:
    """Ask, and photograph the page when all is answered."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver") or "chromedriver")
    )
    try:
        driver.get(url)
        wait(lambda: driver.find_element("id", "status").text.startswith("ready"))
        for n, question in enumerate([*questions, *([""] if audio is not None else [])], start=1):
            if n == 1:
                driver.find_element("id", "picture").send_keys(str(image.resolve()))
                wait(lambda: driver.find_elements("css selector", "#attached img"))
            if not question:
                driver.find_element("id", "sound").send_keys(str(audio.resolve() if audio is not None else ""))
                wait(lambda: driver.find_elements("css selector", "#attached audio"))
            driver.find_element("id", "text").send_keys(question + "\n")
            wait(lambda n=n: len(driver.find_elements("css selector", "#log li.assistant[data-done]")) == n)
        driver.save_screenshot(str(out))
    finally:
        driver.quit()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--ask", action="append", required=True, help="may be given several times")
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = serve(given.ckpt, Path(folder) / "server.log")
        try:
            converse(url, f"{folder}/profile", given.image, given.ask, given.audio, given.out)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
