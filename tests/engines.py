"""Browsers other than Chromium, driven by what their makers give: WebKit's WebDriver, Firefox's WebDriver BiDi."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import websocket

MINI_BROWSERS = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
WEBKIT = shutil.which("WebKitWebDriver") if MINI_BROWSERS and shutil.which("Xvfb") else None
PATIENCE = 120  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(call):
    """Call again until it raises no more."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class WebKit:
    """One tab of WebKitGTK, by the W3C's WebDriver."""

    def __init__(self, port: int):
        self.base = f"http://127.0.0.1:{port}"
        options = {"binary": str(MINI_BROWSERS[-1]), "args": ["--automation"]}
        capabilities = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
        self.base += f"/session/{until(lambda: self.send('POST', '/session', capabilities))['sessionId']}"
        self.send("POST", "/timeouts", {"script": PATIENCE * 1000})

    def send(self, method: str, path: str, content: dict | None = None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self.base}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE + 30) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None

    def open(self, path: Path, width: int, height: int = 900) -> None:
        self.send("POST", "/window/rect", {"x": 0, "y": 0, "width": width, "height": height})
        self.send("POST", "/url", {"url": path.as_uri()})

    def evaluate(self, function: str, *arguments):
        """Call a function of JavaScript, perhaps an asynchronous one."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"Promise.resolve(({function})(...[...arguments].slice(0, -1))).then("
            "value => done({value}), error => done({error: String(error.message)}));"
        )
        found = self.send("POST", "/execute/async", {"script": script, "args": list(arguments)})
        if "error" in found:
            raise RuntimeError(found["error"])
        return found.get("value")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("GET", "/screenshot"))

    def close(self) -> None:
        self.send("DELETE", "")


class Firefox:
    """One tab of Firefox, by WebDriver BiDi."""

    def __init__(self, port: int):
        self.number = 0
        url = f"ws://127.0.0.1:{port}/session"
        self.socket = until(lambda: websocket.create_connection(url, PATIENCE, suppress_origin=True))
        self.send("session.new", capabilities={})
        self.tab = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def send(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        message = {}
        while message.get("id") != self.number:  # others are events
            message = json.loads(self.socket.recv())
        if message["type"] == "error":
            raise RuntimeError(message["message"])
        return message["result"]

    def open(self, path: Path, width: int, height: int = 900) -> None:
        self.send("browsingContext.setViewport", context=self.tab, viewport={"width": width, "height": height})
        self.send("browsingContext.navigate", context=self.tab, url=path.as_uri(), wait="complete")

    def evaluate(self, function: str, *arguments):
        """Call a function of JavaScript, perhaps an asynchronous one; what passes is JSON."""
        texts = [{"type": "string", "value": json.dumps(argument)} for argument in arguments]
        declaration = f"async (...texts) => JSON.stringify(await ({function})(...texts.map(JSON.parse)) ?? null)"
        found = self.send(
            "script.callFunction",
            functionDeclaration=declaration,
            arguments=texts,
            awaitPromise=True,
            target={"context": self.tab},
        )
        if found["type"] == "exception":
            raise RuntimeError(found["exceptionDetails"]["text"])
        return json.loads(found["result"]["value"])

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("browsingContext.captureScreenshot", context=self.tab)["data"])

    def close(self) -> None:
        self.send("browser.close")


@contextmanager
def started(name: str, folder: Path) -> Iterator[WebKit | Firefox]:
    """Start a browser, "webkit" or "firefox", with a home of its own in `folder`; it ends with the block."""
    port, home = free_port(), {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    environment, processes = os.environ | home, []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        if name == "firefox":
            command = [FIREFOX, "--headless", "--profile", folder, "--remote-debugging-port", str(port)]
            processes.append(subprocess.Popen(command, env=environment, **quiet))
            browser = Firefox(port)
        else:
            reading, writing = os.pipe()
            screen = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
            processes.append(subprocess.Popen(screen, pass_fds=[writing], **quiet))
            display = os.read(reading, 16).decode().strip()
            # no sandbox, accelerated drawing or accessibility bus: containers have none of what these need
            environment |= {"DISPLAY": f":{display}", "NO_AT_BRIDGE": "1"}
            processes.append(subprocess.Popen([WEBKIT, f"--port={port}"], env=environment, **quiet))
            browser = WebKit(port)
        yield browser
        with suppress(Exception):
            browser.close()
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)
