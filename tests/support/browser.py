"""A real browser: Chromium without a window, told what to do through its DevTools protocol, over a pair of pipes.

It reaches nothing but loopback, so that pages look the same with and without a network.

    PYTHONPATH=tests python -m support.browser FOLDER/PAGE.html PICTURE.png [--root FOLDER] [--width 390] [--dark]

takes a picture, to look for oneself.
"""

import argparse
import base64
import contextlib
import fcntl
import functools
import http.server
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ON_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root may not have; nothing is opened but our own pages
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
SECONDS = 60


class BrowserError(Exception):
    """The browser ended, did not answer in time, or a script failed in a page."""


def executable() -> str | None:
    """The browser of this machine, if it has one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or (ON_MACOS if os.path.exists(ON_MACOS) else None)


class Browser:
    """A browser that runs."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser, self._from_browser = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol; events that arrive meanwhile are remembered."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while (answer := self._next_message(deadline)).get("id") != number:
            self._events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def wait_for(self, event: str, session: str) -> None:
        """Waits for an event, if it has not arrived yet."""
        deadline = time.monotonic() + SECONDS
        while not any(True for _ in self.events(event, session)):
            self._events.append(self._next_message(deadline))

    def events(self, name: str, session: str) -> Iterator[dict[str, Any]]:
        """The parameters of the events of a name that have arrived."""
        for event in self._events:
            if event.get("method") == name and event.get("sessionId") == session:
                yield event["params"]

    def _next_message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from_browser], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer in {SECONDS} s")
            part = os.read(self._from_browser, 1 << 20)
            if not part:
                raise BrowserError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    @contextlib.contextmanager
    def open(self, address: str, *, width: int, height: int = 900, dark: bool = False) -> Iterator["Page"]:
        """Opens a page in a window of a size in CSS pixels, for somebody who likes it light or dark."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Page.navigate", session, url=address)
        self.wait_for("Page.loadEventFired", session)
        yield Page(self, session)
        self.call("Target.closeTarget", targetId=target)


class Page:
    """A page that has been loaded."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise, as JSON has it."""
        result = self._browser.call(
            "Runtime.evaluate", self._session, expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(json.dumps(result["exceptionDetails"], indent=1))
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, but for what other hosts do not deliver."""
        self.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
        return [*self._log(), *self._exceptions(), *self._printed()]

    def _log(self) -> Iterator[str]:
        for event in self._browser.events("Log.entryAdded", self._session):
            entry, address = event["entry"], event["entry"].get("url", "")
            is_elsewhere = address.startswith("http") and "//127.0.0.1" not in address
            if entry["level"] in ("error", "warning") and not is_elsewhere:
                yield f"{entry['text']} {address}".strip()

    def _exceptions(self) -> Iterator[str]:
        for event in self._browser.events("Runtime.exceptionThrown", self._session):
            yield json.dumps(event["exceptionDetails"])[:500]

    def _printed(self) -> Iterator[str]:
        for event in self._browser.events("Runtime.consoleAPICalled", self._session):
            if event["type"] in ("error", "warning", "assert"):
                yield " ".join(str(argument.get("value")) for argument in event["args"])

    def picture(self, box: dict[str, float] | None = None) -> bytes:
        """A PNG of the whole page, or of a box `{x, y, width, height}` of it."""
        options = {"clip": {**box, "scale": 1}} if box else {}
        return base64.b64decode(
            self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=True, **options)["data"]
        )

    def colours(self, box: dict[str, float]) -> int:
        """How many different colours a box of the page has."""
        picture = base64.b64encode(self.picture(box)).decode()
        return int(self.evaluate(f"({_COUNT_COLOURS})('data:image/png;base64,{picture}')"))


_COUNT_COLOURS = """async address => {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return new Set(new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer)).size;
}"""


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Starts the browser, with a profile of its own, and ends it."""
    found = executable()
    if found is None:
        raise BrowserError(f"none of {', '.join(NAMES)} is on PATH")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as stack:
        # It reads from descriptor 3 and writes to 4, which may be taken on our side.
        its_in, our_out = _high_pipe(stack)
        our_in, its_out = _high_pipe(stack)
        command = [found, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_in} 4>&{its_out}', "bash", *command],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_out)
        browser = Browser(our_out, our_in)
        try:
            browser.call("Browser.getVersion")
            yield browser
            with contextlib.suppress(BrowserError):
                browser.call("Browser.close")
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()


def _high_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for low, end in zip(ends, high, strict=True):
        os.close(low)
        stack.callback(_close, end)
    return high[0], high[1]


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


class _Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves a folder on loopback; yields its address."""
    handler = functools.partial(_Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--root", type=Path, help="the folder of all that the page refers to; default: the page's own")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    root = arguments.root or arguments.page.parent
    with (
        serving(root) as site,
        running() as browser,
        browser.open(f"{site}/{arguments.page.relative_to(root)}", width=arguments.width, dark=arguments.dark) as page,
    ):
        arguments.picture.write_bytes(page.picture())


if __name__ == "__main__":
    main()
