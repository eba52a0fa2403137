"""Check a model on this device: whether it predicts here what it predicts where it was made.

    python check.py                         the files of this folder, by ONNX Runtime
    python check.py --csv predictions.csv   what another runtime predicted: columns photo, and one for each class

Needs Python 3.9 or newer and numpy; without --csv also onnxruntime and Pillow. Nothing is sent anywhere. Writes
answers_*.json, which `python run.py judge` puts beside the evidence, where the model was made.
"""

import argparse
import csv
import json
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to Microsoft

import numpy as np  # noqa: E402

try:
    from numpy._core._multiarray_umath import __cpu_features__ as CPU  # noqa: E402
except ImportError:  # numpy 1
    from numpy.core._multiarray_umath import __cpu_features__ as CPU  # noqa: E402

HERE = Path(__file__).resolve().parent
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
TIMES = 5  # calls of each photo


def main() -> int:
    """Check, and write down, what each file predicts here; returns 1 if a prediction differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="predictions of another runtime")
    parser.add_argument("--file", choices=EXPECTED["files"], help="the file they are of (default: the shipped one)")
    parser.add_argument("--runtime", default="another runtime", help="its name and version, with --csv")
    parser.add_argument("--ms", type=float, help="milliseconds that it took for a photo, with --csv")
    options = parser.parse_args()
    if options.csv:
        found = read_table(options.csv)
        return int(report(options.file or EXPECTED["shipped"], options.runtime, found, options.ms))
    files = [options.file] if options.file else EXPECTED["files"]
    return int(any([report(file, *run_file(HERE / file)) for file in files]))


def run_file(path: Path) -> tuple:
    """Predict all photos by ONNX Runtime; returns its name, the probabilities by photo, and ms a photo (median)."""
    import onnxruntime as ort
    from PIL import Image

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    runtime = f"ONNX Runtime {ort.__version__}"
    eight_bits = session.get_modelmeta().custom_metadata_map.get("weight_bits") == "8"
    if eight_bits and CPU.get("SSSE3") and not CPU.get("AVX512VNNI"):  # x86 that sums in 16 bits, where they overflow
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        runtime += ", session.x64quantprecision=1"
    found, times = {}, []
    for name in EXPECTED["photos"]:
        with Image.open(HERE / "photos" / name) as image:
            pixels = {"image": np.asarray(image.convert("RGB"))[None]}
        for _ in range(TIMES):
            start = time.perf_counter()
            (found[name],) = session.run(["probabilities"], pixels)[0]
            times.append(1e3 * (time.perf_counter() - start))
    return runtime, found, statistics.median(times)


def read_table(path: Path) -> dict:
    """Read a CSV file of a photo's name and a number for each class, probabilities or logits; returns probabilities."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    lacking = {"photo", *EXPECTED["classes"]} - set(rows[0] if rows else {})
    missing = set(EXPECTED["photos"]) - {row.get("photo") for row in rows}
    if lacking or missing:
        sys.exit(f"{path}: no column {sorted(lacking)}" if lacking else f"{path}: no row of {sorted(missing)[:5]}")
    found = {}
    for row in rows:
        values = np.array([float(row[name]) for name in EXPECTED["classes"]])
        if values.min() < 0 or abs(values.sum() - 1) > 0.01:  # logits
            values = np.exp(values - values.max())
        found[row["photo"]] = values / values.sum()
    return found


def report(file: str, runtime: str, found: dict, milliseconds: float) -> bool:
    """Print how the predictions compare with the expected ones, and write them down; returns whether any differs."""
    expected = {name: np.array(photo["probabilities"][file]) for name, photo in EXPECTED["photos"].items()}
    other = [name for name, values in expected.items() if values.argmax() != np.argmax(found[name])]
    same, count = len(expected) - len(other), len(expected)
    largest = max(np.abs(values - found[name]).max() for name, values in expected.items())
    pace = f"; {milliseconds:.1f} ms a photo" if milliseconds else ""
    print(f"{file} in {runtime}: the same predictions on {same} of {count} photos, ", end="")
    print(f"probabilities differ by {largest:.4f} at most{pace}")
    for name in other[:5]:
        here, there = (EXPECTED["classes"][int(np.argmax(values))] for values in (found[name], expected[name]))
        print(f"  {name}: {here}, expected {there}")
    system = platform.platform(terse=True)
    answers = {
        "machine": platform.node() or system,
        "system": system,
        "cpu": processor(),
        "runtime": runtime,
        "file": file,
        "sha256": EXPECTED["files"][file],
        "latency_ms": milliseconds,
        "photos": {name: [float(value) for value in found[name]] for name in expected},
    }
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{answers['machine']} {platform.machine()} {runtime} {Path(file).stem}")
    target = HERE / f"answers_{words}.json"
    target.write_text(json.dumps(answers, indent=1), encoding="utf-8")
    print(f"Written: {target.name}")
    return bool(other)


def processor() -> str:
    """Name the processor as well as the system tells."""
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text(encoding="utf-8") if cpus.exists() else ""
    named = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
