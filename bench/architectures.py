"""Which networks of timm run through all four notebooks: python -m bench.architectures [NAME ...].

On 36 of the embedded images, with quick settings. A hub on this machine serves random weights, by timm's own way of
asking, so nothing is downloaded and scores mean nothing: what counts is that a notebook ends, or says in a sentence why
not, its seconds, and whether INT8 keeps the answers.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import timm
from safetensors.torch import save_file

import run
from utils.files import sha256
from utils.pretrained import split_arch

IMAGES = 12  # of each class
NAME = "bench_architectures"
SETTINGS = {"FOLDS": 3, "REPEATS": 1, "FOLD_NETWORKS": 1, "ROUNDS": 4, "BATCH_SIZES": (1, 4), "NAME": NAME}
# of so few images one may flip, or the search would go on to its slow second stage
SETTINGS |= {"AGREEMENT": 0.95, "MACRO_F1_LOSS": 0.06, "RECALL_LOSS": 0.11}
ARCHS = [
    *("resnet18@96", "regnety_002@96", "efficientnet_b0@96", "densenet121@96", "inception_v3@128", "dpn68@96"),
    *("mobilenetv3_small_100@96", "mobilenetv4_conv_small@96", "convnext_atto@96", "ghostnet_100@96", "repvit_m1@96"),
    *("vit_tiny_patch16_224@96", "deit_tiny_patch16_224@96", "deit_tiny_distilled_patch16_224@96"),
    *("swin_tiny_patch4_window7_224", "cait_xxs24_224@96", "mixer_s16_224", "beit_base_patch16_224@96"),
    *("vit_small_patch14_dinov2@98", "eva02_tiny_patch14_224@98", "vit_base_patch16_clip_224@96", "levit_128s"),
    *("efficientformer_l1@224", "resnetv2_50x1_bit.goog_in21k@96", "crossvit_tiny_240"),
    *("resnet18.nonsense", "coatnet_0_224", "resnet_nonsense"),
]


def main() -> None:
    """Print a row per network."""
    columns = "".join(f"{name:>16}" for name in run.NOTEBOOKS)
    print(f"{'network':36}{columns}{'INT8 agrees':>14}{'dB':>6}{'time':>7}  recipe")
    with tempfile.TemporaryDirectory() as folder:
        data = copy_some(run.ROOT / "data" / "train", Path(folder) / "photos")
        with local_hub(Path(folder) / "hub", Path(folder) / "cache") as hub:
            for arch in sys.argv[1:] or ARCHS:
                shutil.rmtree(run.ROOT / "checkpoints" / NAME, ignore_errors=True)
                serve_random_weights(hub, split_arch(arch)[0])
                print(row(arch, SETTINGS | {"DATA": str(data), "ARCH": arch}), flush=True)
    shutil.rmtree(run.ROOT / "checkpoints" / NAME, ignore_errors=True)


def row(arch: str, settings: dict) -> str:
    """Run the notebooks; → their seconds, or what the one that stopped said."""
    line = f"{arch:36}"
    for name in run.NOTEBOOKS:
        started = time.perf_counter()
        target = run.ROOT / "runs" / NAME / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        if failure := run.execute(name, settings, target):
            return f"{line}   {failure.strip().splitlines()[-1]}"
        line += f"{time.perf_counter() - started:14.0f} s"
    report = json.loads((run.ROOT / "checkpoints" / NAME / "report.json").read_text(encoding="utf-8"))
    quantization = report["quantization"]
    chosen = next(each for each in quantization["candidates"] if each["recipe"] == quantization["recipe"])
    ratio = chosen["latency_ms"] / quantization["fp32_latency_ms"]
    return f"{line}{chosen['agreement']:13.1%}{chosen['sqnr_db']:7.1f}{ratio:7.2f}  {chosen['recipe']}"


def copy_some(source: Path, target: Path) -> Path:
    """Copy a few images of each class, spread over the class."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        (target / folder.name).mkdir(parents=True)
        for file in files[:: len(files) // IMAGES][:IMAGES]:
            shutil.copy(file, target / folder.name)
    return target


def serve_random_weights(hub: Path, name: str) -> None:
    """Put random weights of a network, if timm knows it, where the hub looks for its pretrained ones."""
    if not timm.is_model(name):
        return
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError:  # an unknown tag
        return
    if repository := timm.get_pretrained_cfg(name).hf_hub_id:
        shutil.rmtree(hub, ignore_errors=True)
        (hub / repository).mkdir(parents=True)
        state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
        save_file(state, hub / repository / "model.safetensors")


@contextmanager
def local_hub(hub: Path, cache: Path) -> Iterator[Path]:
    """Let timm ask a server on this machine for weights: the files below `hub`, by repository."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            file = hub.joinpath(*self.path.split("/")[1:3], "model.safetensors")
            if not (file.exists() and self.path.endswith(".safetensors")):
                self.send_error(404)
                return
            self.send_response(200)
            headers = {"Content-Length": file.stat().st_size, "ETag": f'"{sha256(file)}"', "X-Repo-Commit": "0" * 40}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if with_body:
                self.wfile.write(file.read_bytes())

        def do_HEAD(self) -> None:  # noqa: N802
            self.answer(with_body=False)

        def do_GET(self) -> None:  # noqa: N802
            self.answer(with_body=True)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    os.environ.update(HF_ENDPOINT=address, HF_HOME=str(cache), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    yield hub
    server.shutdown()


if __name__ == "__main__":
    main()
