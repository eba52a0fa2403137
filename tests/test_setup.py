"""run.py's set-up: once, mended when cut short, and without CUDA where no card would use it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import venv
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT, run_py

import run

VERSIONS = {"torch": "2.14.1", "torchvision": "0.29.1"}
PINS = "torch==2.14.1\ntorchvision==0.29.1\n"
WITHOUT_CUDA = {"torch==2.14.1+cpu", "torchvision==0.29.1+cpu"}
WITH_CUDA = {"torch==2.14.1", "torchvision==0.29.1", "nvidia_cublas==13.1"}
CUDA = re.compile(r"(nvidia|cuda|triton)", re.IGNORECASE)


@pytest.fixture
def small_set_up(tmp_path, monkeypatch):
    """run.py's set-up with a lock that names no package."""
    monkeypatch.setattr(run, "VENV_PYTHON", tmp_path / run.VENV_PYTHON.relative_to(run.ROOT))
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(run, "LOCK", tmp_path / "requirements.txt")
    run.LOCK.write_text("# nothing\n")


def test_set_up_once_and_again_after_the_lock_changed(small_set_up):
    run.set_up([])
    (run.VENV / "witness").touch()
    run.set_up([])
    assert (run.VENV / "witness").exists(), "set up twice"
    run.LOCK.write_text("# nothing, in other words\n")
    run.set_up([])
    assert not (run.VENV / "witness").exists(), "an environment of another lock was kept"


def test_a_damaged_mark_means_that_nothing_is_installed(small_set_up):
    run.set_up([])
    for content in ("", "{", "\0\0"):
        (run.VENV / "installed.json").write_text(content)
        run.set_up([])
        assert "lock" in run.read_mark(run.VENV / "installed.json")


def test_interrupted_set_up_is_mended(small_set_up):
    run.LOCK.write_text("./no-such-wheel-1.0-py3-none-any.whl\n")
    with pytest.raises(SystemExit, match="the installation failed"):
        run.set_up([])
    run.LOCK.write_text("# nothing\n")
    run.set_up([])
    assert run.VENV_PYTHON.exists() and (run.VENV / "installed.json").exists()


def test_page_goes_without_npm_where_it_cannot_be_installed(small_set_up, monkeypatch, capsys):
    run.set_up([])
    monkeypatch.setattr(run, "dependency_group", lambda name: ["./no-such-wheel-1.0-py3-none-any.whl"])
    run.set_up_npm()
    assert "run.py: the installation failed" in capsys.readouterr().out
    assert run.VENV_PYTHON.exists() and "lock" in run.read_mark(run.VENV / "installed.json")


def write_wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """Write a wheel that holds nothing, of a folder per package, as an index has it."""
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    info = f"{name}-{version}.dist-info"
    (folder / name).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Index(SimpleHTTPRequestHandler):
    """A package index of a folder of folders, which writes down what it is asked."""

    def log_request(self, *arguments) -> None:
        self.server.asked.append(self.path)


@pytest.fixture
def serve():
    """Serve a folder as an index on this machine; → its address, and what it was asked so far."""
    servers = []

    def start(folder: Path) -> tuple[str, list[str]]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=folder))
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", server.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def plain_pip(monkeypatch):
    """Pip as it comes, whatever this machine told it, on a machine without a card."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setattr(run, "has_nvidia_driver", lambda: False)


@pytest.fixture
def asked(plain_pip, tmp_path, monkeypatch, serve) -> list[str]:
    """Make stand-ins of PyTorch: with CUDA where the lock points to, without in an index; → what that one is asked."""
    for name, version in VERSIONS.items():
        write_wheel(tmp_path / "cpu", name, f"{version}+cpu")
        write_wheel(tmp_path / "usual", name, version, "nvidia_cublas" if name == "torch" else "")
    write_wheel(tmp_path / "usual", "nvidia_cublas", "13.1")
    places = "".join(f"--find-links {folder}\n" for folder in (tmp_path / "usual").iterdir())
    monkeypatch.setattr(run, "LOCK", tmp_path / "requirements.txt")
    run.LOCK.write_text(f"--no-index\n{places}{PINS}")
    address, asked = serve(tmp_path / "cpu")
    monkeypatch.setattr(run, "CPU_INDEX", address)
    return asked


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment for many set-ups, as making one takes seconds."""
    folder = tmp_path_factory.mktemp("environment") / ".venv"
    venv.create(folder, with_pip=True)
    return folder


@pytest.fixture
def install(environment, asked, monkeypatch):
    """Install the lock as the set-up does, into an environment without PyTorch; → what is there then."""
    monkeypatch.setattr(run, "VENV", environment)
    monkeypatch.setattr(run, "VENV_PYTHON", environment / run.VENV_PYTHON.relative_to(run.ROOT / ".venv"))

    def from_lock(build: str | None = None) -> set[str]:
        run_pip("uninstall", "--yes", *VERSIONS, "nvidia_cublas")
        run.install_torch(build)
        run.install(["-r", str(run.LOCK)])
        return installed()

    return from_lock


def run_pip(*arguments: str) -> str:
    return subprocess.run([run.VENV_PYTHON, "-m", "pip", *arguments], stdout=subprocess.PIPE, encoding="utf-8").stdout


def installed() -> set[str]:
    return set(run_pip("freeze").split())


def test_without_a_card_pytorch_comes_without_cuda_and_stays(small_set_up, asked, capsys):
    run.set_up([])
    assert installed() == WITHOUT_CUDA
    assert {path.split("/")[1] for path in asked} == {"torch", "torchvision"}, "more than these two was asked for"
    asked.clear()
    run.set_up([], "cuda")
    assert installed() == WITHOUT_CUDA and not asked
    assert ".venv was made without --cuda and stays as it is" in capsys.readouterr().out


def test_an_nvidia_driver_is_seen(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.has_nvidia_driver()


def test_with_a_card_pytorch_comes_with_cuda(install, asked, monkeypatch):
    monkeypatch.setattr(run, "has_nvidia_driver", lambda: True)
    assert install() == WITH_CUDA and not asked
    assert install("cpu") == WITHOUT_CUDA and asked


def test_cuda_can_be_insisted_on(install, asked):
    assert install("cuda") == WITH_CUDA and not asked


@pytest.mark.parametrize("fault", ["refuses", "never answers", "lacks the version"])
def test_an_index_that_fails_costs_a_line_and_nothing_else(install, tmp_path, monkeypatch, capsys, serve, fault):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if fault == "refuses":
            silent.close()
        if fault == "lacks the version":
            (tmp_path / "empty" / "torch").mkdir(parents=True)
            address = serve(tmp_path / "empty")[0]
        monkeypatch.setattr(run, "CPU_INDEX", address)
        monkeypatch.setattr(run, "PATIENCE", 3)
        assert install() == WITH_CUDA
    said = capsys.readouterr().out.replace("\r", "").splitlines()
    assert said[0] == f"PyTorch without CUDA cannot be had from {address}: it comes with CUDA, 3 GB more"
    assert [line.strip() for line in said[1:]] == ["Set up."]


def test_sources_that_pip_was_told_are_respected_unless_the_option_says_otherwise(
    install, asked, tmp_path, monkeypatch, serve
):
    mirror, asked_of_mirror = serve(tmp_path / "mirror")
    for folder in (tmp_path / "usual").iterdir():
        shutil.copytree(folder, tmp_path / "mirror" / folder.name.replace("_", "-"))
    run.LOCK.write_text(PINS)
    monkeypatch.setenv("PIP_INDEX_URL", mirror)
    assert install() == WITH_CUDA
    assert asked_of_mirror and not asked
    assert install("cpu") == WITHOUT_CUDA and asked


@pytest.mark.parametrize(
    ("setting", "value", "is_source"),
    [
        ("index-url", "https://mirror.invalid/simple", True),
        ("extra-index-url", "https://mirror.invalid/simple", True),
        ("find-links", "/srv/wheels", True),
        ("no-index", "true", True),
        ("cert", "/etc/firm.pem", False),
        ("timeout", "60", False),
    ],
)
def test_where_pip_can_be_told_so(plain_pip, tmp_path, monkeypatch, setting, value, is_source):
    monkeypatch.setattr(run, "VENV_PYTHON", sys.executable)
    assert not run.has_own_sources()
    with monkeypatch.context() as variables:
        variables.setenv(f"PIP_{setting.upper().replace('-', '_')}", value)
        assert run.has_own_sources() == is_source
    (tmp_path / "pip.conf").write_text(f"[global]\n{setting} = {value}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert run.has_own_sources() == is_source


def test_the_lock_names_nothing_that_only_cuda_needs():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pins) > 100 and not [line for line in pins if CUDA.match(line)]
    assert any(line.startswith("torch==") for line in pins) and any(line.startswith("torchvision==") for line in pins)


@pytest.mark.parametrize(
    ("system", "machine", "largest", "sentence"),
    [
        ("linux", "x86_64", 2**63 - 1, ""),
        ("darwin", "arm64", 2**63 - 1, ""),
        ("darwin", "x86_64", 2**63 - 1, "no longer made for Intel Macs"),
        ("linux", "armv7l", 2**31 - 1, "this Python has 32 bits"),
    ],
)
def test_a_machine_for_which_nothing_is_built_is_told_so(system, machine, largest, sentence):
    said = run.lack_of_builds(system, machine, largest)
    assert sentence in said if sentence else said == ""


def test_cpu_and_cuda_exclude_each_other(project):
    done = run_py(project, "--cpu", "--cuda")
    assert done.returncode == 2 and "not allowed with argument --cpu" in done.stderr


def test_uv_finds_a_python_that_is_new_enough():
    uv = [sys.executable, "-m", "uv", "run", "--offline", "--python", sys.executable]
    done = subprocess.run([*uv, ROOT / "run.py", "--help"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.startswith("usage: run.py"), done.stderr
