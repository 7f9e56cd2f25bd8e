"""A headless Chromium, driven by its DevTools protocol over pipes: no package, no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATH = next((found for name in NAMES if (found := shutil.which(name))), None)
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--mute-audio", "--remote-debugging-pipe")  # fmt: skip


class Browser:
    """One browser with one page."""

    def __init__(self, profile: Path) -> None:
        commands, self._out = (_high(number) for number in os.pipe())
        self._in, events = (_high(number) for number in os.pipe())
        assert PATH is not None

        def connect() -> None:
            # The browser reads commands from its descriptor 3 and writes events to its descriptor 4.
            os.dup2(commands, 3)
            os.dup2(events, 4)

        self._process = subprocess.Popen(
            [PATH, *_QUIET, f"--user-data-dir={profile}"],
            close_fds=False,
            preexec_fn=connect,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> Any:
        """Ask for something and wait for the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Show a page at this size and wait until it has started."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.do("window.before = true")
        self.command("Page.navigate", url=url)
        self.until("!window.before && document.querySelector('#model')?.textContent")

    def do(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        answer = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.do(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not come true"
            time.sleep(0.01)

    def fill(self, field: str, text: str) -> None:
        """Type into a field as a person would, replacing what is there."""
        self.do(f"document.querySelector({json.dumps(field)}).select()")
        self.do(f"document.querySelector({json.dumps(field)}).focus()")
        self.command("Input.insertText", text=text)

    def press(self, key: str, code: int, control: bool = False) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=2 if control else 0,
            )  # fmt: skip

    def choose_file(self, field: str, path: Path) -> None:
        """Choose a file in a file field."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
        self.command("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])

    def controls(self) -> Mapping[str, str]:
        """Names that screen readers say of what can be used, with their roles."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "combobox", "spinbutton", "checkbox", "link", "progressbar"}
        found = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in roles]
        return {f"{number}": node.get("name", {}).get("value", "") for number, node in enumerate(found)}

    def complaints(self) -> list[str]:
        """Errors, blocked scripts and uncaught exceptions so far."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def visited(self) -> set[str]:
        """Addresses of all requests so far."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {event["params"]["request"]["url"] for event in sent}

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], seconds)
            assert ready, "the browser is silent"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


def _high(number: int) -> int:
    """The same pipe under a number that is not in the way of 3 and 4."""
    copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(number)
    return copy
