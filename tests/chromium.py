"""A headless Chromium with software WebGL, driven over a pair of pipes by the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
COMMANDS_IN, ANSWERS_OUT = 3, 4  # file descriptors on which Chromium expects the two pipes


class Browser:
    """One page; the console's messages and errors gather in ``messages``."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 700) -> None:
        commands_in, self._commands = os.pipe()
        self._answers, answers_out = os.pipe()
        # Chromium finds the pipes at fixed numbers, which may be taken in this process.
        ends = f"{COMMANDS_IN}<&{commands_in} {ANSWERS_OUT}>&{answers_out}"
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" {ends}', "bash", str(CHROMIUM), *OPTIONS),
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(commands_in, answers_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_in)
        os.close(answers_out)
        self._received, self._number, self._session = b"", 0, ""
        self.messages: list[str] = []
        targets = self.command("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.command("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.command(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(timeout=20)
        os.close(self._commands)
        os.close(self._answers)

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            if answer["method"] in (
                *("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"),
            ):
                self.messages.append(json.dumps(answer["params"]))

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 120) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"{script} stayed false; {self.messages}"
            time.sleep(0.2)

    def open(self, address: str) -> None:
        """Load a page and wait until it says that it is ready, or has failed."""
        self.command("Page.navigate", url=address)
        self.wait_for("['ready', 'failed'].includes(document.body?.dataset.state)")

    def mouse(self, kind: str, x: float, y: float, button: str = "none") -> None:
        """Move, press or release the mouse at a place of the page, in pixels."""
        pressed = {"none": 0, "left": 1, "right": 2}[button] * (kind != "mouseReleased")
        where = {"x": x, "y": y, "button": button, "buttons": pressed, "clickCount": 1}
        self.command("Input.dispatchMouseEvent", type=kind, **where)

    def key(self, name: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=name)

    def picture(self, path: Path) -> None:
        """Save what the page looks like as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium ended"
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)
