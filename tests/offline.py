"""Run a command as on a new machine: with an empty home, and, where Linux allows it, in a network of its own.

That network has no way out, and a name server that writes down what it is asked.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

FILES = {"/etc/resolv.conf": "nameserver 127.0.0.1\n", "/etc/nsswitch.conf": "hosts: files dns\n"}
SET_FLAGS, UP = 0x8914, 0x41  # SIOCSIFFLAGS; IFF_UP and IFF_RUNNING
TELLTALES = ("CI", "XDG_", "ORT_", "HF_", "MPL", "IPYTHON", "JUPYTER")  # how variables begin that a new machine lacks


class Done(NamedTuple):
    """What a command did; `calls` are the names that it asked for and addresses it sent to, None if not observed."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[str] | None


def isolate() -> list[str] | None:
    """Find the command that runs another one in a network of its own; None where that is not allowed."""
    options = ["--net", "--mount"]
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        options.append("--map-root-user")
    command = ["unshare", *options]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return None


def run_offline(command: list, home: Path, cwd: Path) -> Done:
    """Run a command with `home` as home, and nothing in the environment that says that this is a test."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(TELLTALES)}
    home.mkdir(exist_ok=True)
    environment["HOME"] = str(home)
    log = home.with_suffix(".calls")
    unshare = isolate()
    if unshare:
        command = [*unshare, sys.executable, __file__, log, *command]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8")
    calls = json.loads(log.read_text(encoding="utf-8")) if unshare else None
    return Done(done.returncode, done.stdout, done.stderr, calls)


def main(log: str, *command: str) -> int:
    """Run a command in the network just made, and write to `log` whom it called; → its exit code."""
    import fcntl  # here, as Windows does not have it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
    for path, text in FILES.items():
        replace_file(Path(path), text, Path(f"{log}.{Path(path).name}"))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    names: list[str] = []
    threading.Thread(target=answer, args=[server, names], daemon=True).start()
    returncode = subprocess.run(command).returncode
    Path(log).write_text(json.dumps([*names, *["an address"] * count_unroutable()]), encoding="utf-8")
    return returncode


def replace_file(path: Path, text: str, replacement: Path) -> None:
    """Put a file in the place of another, for this process and its children alone."""
    replacement.write_text(text, encoding="utf-8")
    if path.exists():
        subprocess.run(["mount", "--bind", replacement, path], check=True)


def answer(server: socket.socket, names: list[str]) -> None:
    """Answer every question with "no such name", and keep the name."""
    while True:
        question, sender = server.recvfrom(4096)
        labels, position = [], 12  # where the header ends
        while question[position]:
            end = position + 1 + question[position]
            labels.append(question[position + 1 : end].decode(errors="replace"))
            position = end
        names.append(".".join(labels))
        server.sendto(question[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + question[12 : position + 5], sender)


def count_unroutable() -> int:
    """Count what was sent to addresses that this network does not have."""
    keys, values = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
    newer = Path("/proc/net/snmp6")  # IPv6, which a system may lack
    ip6 = dict(line.split() for line in newer.read_text().splitlines()) if newer.exists() else {}
    return int(values[keys.index("OutNoRoutes")]) + int(ip6.get("Ip6OutNoRoutes", 0))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
