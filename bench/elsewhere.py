"""The files of runs in other runtimes: python -m bench.elsewhere RUN... [--venvs FOLDER] [--only NAME...].

Writes docs/targets.md: which file works in which runtime, at which version, and how near its answers are to those of
ONNX Runtime with exact sums. A RUN is a name, "" for the embedded one. Each runtime is installed by pip or npm into a
folder of its own, which takes ten gigabytes and a network; with --venvs the folders stay, and are used again. What
cannot be installed or run is said with the line of its error that tells most. Photos go through one at a time, as most
converters fix a batch.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

PHOTOS = 100
SIDES = 200, 260  # height and width of the photos that deployed files resize
FILES = "fp32", "int8", "deploy"
REASON = 110  # letters of an error, at most
TIMEOUT = 300  # seconds for a runtime and a file

# --- inside of a runtime's environment: path of a file, images (N, ...) → outputs, one after the other


def run_onnxruntime(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run the graph as it is written, without ONNX Runtime's own 8-bit kernels."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return (session.run(None, {name: image[None]})[0] for image in images)


def run_openvino(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run as OpenVINO likes to, which is in bfloat16 on CPUs that have it."""
    sys.modules["openvino_telemetry"] = None  # it would report to Intel
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU")
    return (compiled(image[None])[0] for image in images)


def run_openvino_float32(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run with floats of 32 bits where there are floats."""
    sys.modules["openvino_telemetry"] = None
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return (compiled(image[None])[0] for image in images)


def run_node(path: Path, images: np.ndarray, package: str = "onnxruntime-node") -> Iterable[np.ndarray]:
    """Run in JavaScript, under Node."""
    source, target = path.with_suffix(".in"), path.with_suffix(".out")
    source.write_bytes(images.tobytes())
    shape = [1, *images.shape[1:]]
    kind = {"float32": "Float32Array", "uint8": "Uint8Array"}[images.dtype.name]
    code = f"""
const ort = require("{package}"), fs = require("fs");
ort.env.wasm.numThreads = 1;
const options = {{executionProviders: ["{"wasm" if package == "onnxruntime-web" else "cpu"}"]}};
ort.InferenceSession.create({json.dumps(str(path))}, options).then(async (session) => {{
  const bytes = fs.readFileSync({json.dumps(str(source))}), found = [];
  const all = new {kind}(bytes.buffer, bytes.byteOffset);
  for (let start = 0; start < all.length; start += {images[0].size}) {{
    const part = all.slice(start, start + {images[0].size});
    const photo = new ort.Tensor("{images.dtype.name}", part, {shape});
    const output = await session.run({{[session.inputNames[0]]: photo}});
    found.push(Array.from(output[session.outputNames[0]].data));
  }}
  fs.writeFileSync({json.dumps(str(target))}, JSON.stringify(found));
}});
"""
    subprocess.run(["node", "-e", code], cwd=Path(sys.prefix), check=True)
    return np.array(json.loads(target.read_text(encoding="utf-8")), np.float32)


def run_web(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run in WebAssembly, under Node."""
    return run_node(path, images, "onnxruntime-web")


def run_tract(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run in tract, with the input's shape set."""
    import tract

    model = tract.onnx().load(path)
    model.set_input_fact(
        0, ",".join(map(str, (1, *images.shape[1:]))) + {"float32": ",f32", "uint8": ",u8"}[images.dtype.name]
    )
    runnable = model.into_model().into_runnable()
    return (runnable.run([image[None]])[0].to_numpy() for image in images)


def run_mnn(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Convert for MNN, and run."""
    target = path.with_suffix(".mnn")
    converter = str(Path(sys.prefix) / "bin" / "mnnconvert")
    command = [converter, "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(target), "--bizCode", "MNN"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.exists():
        raise RuntimeError(f"mnnconvert ends with {done.returncode}")
    import MNN
    import MNN.numpy

    name = "image" if images.dtype == np.uint8 else "input"
    network = MNN.nn.load_module_from_file(str(target), [name], ["probabilities" if name == "image" else "output"])
    for image in images:
        given = MNN.expr.convert(MNN.numpy.array(image[None]), MNN.expr.NCHW)
        yield np.array(network.forward([given])[0].read())


def run_ncnn(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Convert by pnnx, and run in ncnn with floats of 32 bits."""
    shape = (
        f"inputshape=[{','.join(map(str, (1, *images.shape[1:])))}]"
        + {"float32": "f32", "uint8": "u8"}[images.dtype.name]
    )
    command = [str(Path(sys.prefix) / "bin" / "pnnx"), path.name, shape, "fp16=0"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pnnx ends with {done.returncode}")
    import ncnn

    network = ncnn.Net()
    if network.load_param(str(path.with_suffix(".ncnn.param"))) or network.load_model(
        str(path.with_suffix(".ncnn.bin"))
    ):
        raise RuntimeError("ncnn cannot read what pnnx wrote")
    for image in images:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)))
        yield np.array(extractor.extract("out0")[1])


def run_opencv(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run in OpenCV's dnn, with its default engine."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    for image in images:
        network.setInput(image[None])
        yield network.forward()


def run_opencv_classic(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Run in OpenCV's dnn, with the engine of OpenCV 4."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path), cv2.dnn.ENGINE_CLASSIC)
    for image in images:
        network.setInput(image[None])
        yield network.forward()


def run_iree(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Compile by IREE for this CPU, and run."""
    bin, mlir, target = Path(sys.prefix) / "bin", path.with_suffix(".mlir"), path.with_suffix(".vmfb")
    subprocess.run([bin / "iree-import-onnx", path, "-o", mlir], check=True)
    options = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    subprocess.run([bin / "iree-compile", mlir, *options, "--iree-llvmcpu-target-cpu=host", "-o", target], check=True)
    given, found = path.with_suffix(".in.npy"), path.with_suffix(".out.npy")
    for (
        image
    ) in images:  # the Python interface of 3.13.0 answers about something else: findings/iree_numpy_arguments.sh
        np.save(given, image[None])
        command = [bin / "iree-run-module", f"--module={target}", "--function=main_graph", "--device=local-sync"]
        subprocess.run([*command, f"--input=@{given}", f"--output=@{found}"], check=True)
        yield np.load(found)


def run_tvm(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Compile by TVM's Relax for this CPU, and run."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)
    name = model.graph.input[0].name
    module = from_onnx(model, shape_dict={name: [1, *images.shape[1:]]}, keep_params_in_input=False)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    for image in images:
        found = machine["main"](tvm.runtime.tensor(image[None]))
        yield (found if hasattr(found, "numpy") else found[0]).numpy()


def run_litert(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Convert to LiteRT's format by onnx2tf, which puts channels last, and run."""
    folder = path.with_suffix("")
    samples = path.parent / "calibration_image_sample_data_20x128x128x3_float32.npy"  # or it would be downloaded
    np.save(samples, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
    subprocess.run([Path(sys.prefix) / "bin" / "onnx2tf", "-i", path, "-o", folder, "-n"], cwd=path.parent, check=True)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(next(folder.glob("*_float32.tflite"))))
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    for image in images:
        turned = image.transpose(1, 2, 0) if image.dtype == np.float32 else image
        interpreter.set_tensor(given["index"], turned[None])
        interpreter.invoke()
        yield interpreter.get_tensor(found["index"])


def run_emx(path: Path, images: np.ndarray) -> Iterable[np.ndarray]:
    """Write C by emx-onnx-cgen, compile it with gcc, and run it."""
    import ctypes

    source, library = path.with_suffix(".c"), path.with_suffix(".so")
    command = [Path(sys.prefix) / "bin" / "emx-onnx-cgen", "compile", path, source, "--model-name", "network"]
    if images.dtype == np.uint8:
        sides = zip(("batch", "height", "width"), (1, *images.shape[1:]), strict=False)
        command += [word for name, size in sides for word in ("--input-dim", f"{name}={size}")]
    subprocess.run(command, check=True)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", library, "-lm"], check=True)
    import onnx

    compiled = ctypes.CDLL(str(library))
    if weights := list(path.parent.glob("network.bin")):  # large ones lie beside the code
        compiled.network_load(str(weights[0]).encode())
    shapes = [[dim.dim_value or 1 for dim in end.type.tensor_type.shape.dim] for end in onnx.load(path).graph.output]
    for image in images:
        found = [np.zeros(shape, np.float32) for shape in shapes]
        arrays = [np.ascontiguousarray(image), *found]
        compiled.network(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))
        yield found[0]


class Runtime(NamedTuple):
    """How a runtime is installed, and the function that runs a file in it."""

    packages: tuple[str, ...]
    run: Callable[[Path, np.ndarray], Iterable[np.ndarray]]
    folder: str  # runtimes of the same packages share an environment
    npm: bool = False


ONNX = "onnx==1.23.2"
TENSORFLOW = "tensorflow-cpu==2.19.1", "tf_keras==2.19.0", "onnx-graphsurgeon", "sng4onnx", "psutil"
RUNTIMES = {
    "ONNX Runtime, graph as written": Runtime(("onnxruntime==1.32.0",), run_onnxruntime, "onnxruntime"),
    "ONNX Runtime, Node": Runtime(("onnxruntime-node@1.30.0",), run_node, "node", npm=True),
    "ONNX Runtime, WebAssembly": Runtime(("onnxruntime-web@1.30.0",), run_web, "node", npm=True),
    "OpenVINO": Runtime(("openvino==2026.4.1",), run_openvino, "openvino"),
    "OpenVINO, in float32": Runtime(("openvino==2026.4.1",), run_openvino_float32, "openvino"),
    "tract": Runtime(("tract==0.23.9", "numpy"), run_tract, "tract"),
    "IREE": Runtime(("iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", ONNX), run_iree, "iree"),
    "TVM": Runtime(("apache-tvm==0.27.0.post1", ONNX, "numpy"), run_tvm, "tvm"),
    "OpenCV": Runtime(("opencv-python-headless==5.0.0.93",), run_opencv, "opencv"),
    "OpenCV, ENGINE_CLASSIC": Runtime(("opencv-python-headless==5.0.0.93",), run_opencv_classic, "opencv"),
    "MNN": Runtime(("MNN==3.6.1", "numpy"), run_mnn, "mnn"),
    "ncnn, by pnnx": Runtime(("ncnn==1.0.20261020", "pnnx==20261020"), run_ncnn, "ncnn"),
    "LiteRT, by onnx2tf": Runtime(("onnx2tf==1.29.24", "ai-edge-litert==2.1.0", *TENSORFLOW), run_litert, "onnx2tf"),
    "C, by emx-onnx-cgen": Runtime(("emx-onnx-cgen==1.4.0",), run_emx, "emx"),
}


def run_inside(name: str, path: Path, images: Path, target: Path) -> None:
    """Run a file in this process's runtime, and keep its outputs."""
    outputs = [np.asarray(output).ravel() for output in RUNTIMES[name].run(path, np.load(images))]
    np.save(target, np.stack(outputs))


# --- outside of it


class Found(NamedTuple):
    """What a file answers in a runtime: the share of photos with the same class, largest difference, or an error."""

    agreement: float = 0.0
    difference: float = 0.0
    error: str = ""


def main() -> None:
    """Try every runtime on the files of every run, and write docs/targets.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", default=[""], help='names of runs, "" for the embedded one')
    parser.add_argument("--venvs", type=Path, help="folder to keep the runtimes in, and what was found")
    parser.add_argument("--only", nargs="*", default=list(RUNTIMES), help="runtimes, by name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        venvs = (options.venvs or Path(temporary) / "venvs").absolute()
        venvs.mkdir(parents=True, exist_ok=True)
        kept = venvs / "found.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        for run in options.runs:
            files = Path(temporary) / (run or "embedded")
            network = prepare_run(run, files)
            for name in options.only:
                fault = install(RUNTIMES[name], venvs)
                tried = {file: Found(error=fault) if fault else try_file(name, files, file, venvs) for file in FILES}
                found.setdefault(network, {})[name] = {file: describe(result) for file, result in tried.items()}
                print(network, name, found[network][name], flush=True)
                kept.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    if all(set(rows) == set(RUNTIMES) for rows in found.values()):  # a part of them would be no table
        write_table(found)


def write_table(found: dict[str, dict[str, dict[str, str]]]) -> None:
    """Write docs/targets.md: of each network a row per runtime, and a cell per file."""
    from jinja2 import Environment, FileSystemLoader

    from utils.config import ROOT
    from utils.files import whole_file

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    packages = {name: version(runtime) for name, runtime in RUNTIMES.items()}
    text = environment.get_template("targets.md").render(found=found, photos=PHOTOS, packages=packages, files=FILES)
    with whole_file(ROOT / "docs" / "targets.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def version(runtime: Runtime) -> str:
    """Name the package that counts, with its version."""
    return runtime.packages[0].replace("==", " ").replace("@", " ")


def python_of(name: str, venvs: Path) -> Path:
    """Return the Python of a runtime's environment."""
    return (venvs / RUNTIMES[name].folder / "bin" / "python").absolute()


def describe(found: Found) -> str:
    """Say in a table's cell what was found."""
    if found.error:
        return "no: " + found.error.replace("|", "/").replace("<", "‹")
    return f"{round(PHOTOS * found.agreement)} of {PHOTOS}, {found.difference:.2g}"


def prepare_run(name: str, folder: Path) -> str:
    """Write the files of a run, photos, and what ONNX Runtime answers with exact sums, into a folder; → the network."""
    from utils.compare_models.kit import fix_batch
    from utils.config import CHECKPOINTS, project_path
    from utils.datasets import evaluation_transform
    from utils.images import read_image
    from utils.report import read_report
    from utils.session import open_session, read_metadata
    from utils.split import load_index, sample_test_part

    run = CHECKPOINTS / name
    report = read_report(run)
    arch, data = report["train"]["arch"], project_path(report["dataset"]["folder"])
    index = load_index(run / "split.csv", data)
    chosen = sample_test_part(index, PHOTOS)
    rest = index.drop(chosen.index)
    images = [read_image(data / path) for path in [*chosen["path"], *rest["path"]][:PHOTOS]]
    folder.mkdir()
    fix_batch(run / f"{arch}.onnx", folder / "fp32.onnx")
    fix_batch(run / f"{arch}_int8.onnx", folder / "int8.onnx")
    shutil.copy(run / f"{arch}_int8_deploy.onnx", folder / "deploy.onnx")
    transform = evaluation_transform(read_metadata(open_session(folder / "deploy.onnx"))["preprocessing"])
    np.save(folder / "images.npy", np.stack([transform(image).numpy() for image in images]))
    np.save(folder / "photos.npy", np.stack([np.asarray(image.resize(SIDES[::-1])) for image in images]))
    for file in FILES:
        session = open_session(folder / f"{file}.onnx", precise=True)
        given = np.load(inputs(folder, file))
        outputs = [session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in given]
        np.save(folder / f"{file}.npy", np.concatenate(outputs))
    return arch


def inputs(folder: Path, file: str) -> Path:
    """Name the photos that a file takes."""
    return folder / ("photos.npy" if file == "deploy" else "images.npy")


def install(runtime: Runtime, folder: Path) -> str:
    """Make a runtime's environment, unless it is there; → the last line of what went wrong, nothing if all is well."""
    place = folder / runtime.folder
    ready = place / "ready"
    packages = " ".join(runtime.packages)
    if ready.exists() and packages in ready.read_text(encoding="utf-8"):
        return ""
    commands = [[sys.executable, "-m", "venv", place]]
    pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    if runtime.npm:
        commands += [
            [*pip, "numpy"],
            ["npm", "install", "--silent", "--ignore-scripts", "--prefix", place, *runtime.packages],
        ]
    else:
        commands += [[*pip, *runtime.packages]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"cannot be installed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
    with ready.open("a", encoding="utf-8") as file:
        file.write(packages + "\n")
    return ""


def try_file(name: str, folder: Path, file: str, venvs: Path) -> Found:
    """Run a file in a runtime, in a process of its own; → how near it comes to what is expected."""
    with tempfile.TemporaryDirectory() as work:
        copied = Path(work) / "net.onnx"
        copied.write_bytes((folder / f"{file}.onnx").read_bytes())
        command = [
            python_of(name, venvs),
            __file__,
            "--inside",
            name,
            copied,
            inputs(folder, file),
            Path(work) / "out.npy",
        ]
        silent = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            options = {"cwd": work, "env": silent, "timeout": TIMEOUT}  # converters leave files where they are called
            done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        except subprocess.TimeoutExpired:
            return Found(error=f"not done after {TIMEOUT} s")
        if not (Path(work) / "out.npy").exists():
            return Found(error=reason_of(done.stdout + done.stderr))
        outputs, expected = np.load(Path(work) / "out.npy"), np.load(folder / f"{file}.npy")
    same = outputs.argmax(axis=1) == expected.argmax(axis=1)
    return Found(float(same.mean()), float(np.abs(outputs - expected).max()))


def reason_of(text: str) -> str:
    """Find the line that says best what went wrong, and leave out its paths and what of it would be too much."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "CalledProcessError" not in line]
    lines = [line for line in lines if not line.startswith(("File ", "raise ", "Traceback", "run_inside(", "^"))]
    telling = [line for line in lines if "rror" in line or "FAIL" in line or "Result:" in line] or lines
    return re.sub(r"\S*/\S*: ", "", [*telling, "no reason given"][max(0, len(telling) - 1)])[:REASON].strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        run_inside(sys.argv[2], *map(Path, sys.argv[3:]))
    else:
        main()
