# /// script
# requires-python = ">=3.11"
# ///
"""Set up, run the four notebooks, classify photos, write a page, open JupyterLab, test. Needs Python 3.11 alone.

python run.py                                     the four notebooks on the embedded fruit
python run.py --data my/photos --name mine        the same on a folder of your own, one folder per class in it
python run.py --data my/photos --labels list.csv  the same where a table, and no folders, says the classes
python run.py --data my/photos --quick            a first verdict in a third of the time; says what it leaves out
python run.py --cluster tcp://head:8786           on the workers of a Dask scheduler ("local": on some started here)
python run.py -p FINE_TUNE_EPOCHS=5 -p SEED=1     with other settings (the second cell of each notebook)
python run.py predict PHOTO FOLDER --name mine    classify photos, and all in folders, with the file that a run ships
python run.py page --name mine                    one HTML file of a run to share: what was found, and the model to try
python run.py kit --name mine                     a folder to try the model on another device: files, photos, a check
python run.py judge answers_*.json --name mine    what the check found there, compared, into the report and the card
python run.py lab                                 open JupyterLab here; its own options, as --allow-root, may follow
python run.py test                                lint and test
"""

from __future__ import annotations  # an older Python must get as far as being told that it is too old

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import venv
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ["EDA", "train", "onnx_quant", "compare_models"]
WIDTH = 100  # of a line that is printed
LEFT_OUT = (
    "Left out by --quick: the notebooks' further evidence (whether more photos would help, faults in photos, other "
    "runtimes), a second round of folds and, unless it was asked for, the choice of a network."
)
QUICK_ARCH = "efficientnet_lite0@128"  # by which EDA looks for near-duplicates in any case
NEEDED = {  # by command: a package that tells whether this Python can do it
    "run": "nbclient",
    "predict": "onnxruntime",
    "page": "jinja2",
    "kit": "onnx",
    "judge": "scipy",
    "lab": "jupyterlab",
    "test": "pytest",
}
LOCK = ROOT / "requirements.txt"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own, of builds without CUDA
PATIENCE = 45  # seconds for that index to answer, since a firewall that drops what it forbids never does
SOURCES = {"index-url", "extra-index-url", "find-links", "no-index"}  # what tells pip where packages come from
STOPS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"]  # Ctrl-C, a job scheduler, a closed terminal, the same on Windows


def main() -> int:
    """Read the command line, set up what is missing, and do what was asked."""
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"run.py needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to stop
    on_stop(lambda number, frame: sys.exit(128 + number))
    # torch's threads sleep while they wait: where others work too, spinning makes them ten times as slow
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to Microsoft once it is imported
    arguments = parse_arguments()
    settings = read_settings(arguments) if arguments.command not in ("lab", "test") else {}
    if not arguments.no_venv:
        if lack := lack_of_builds(sys.platform, platform.machine(), sys.maxsize):
            sys.exit(f"run.py: {lack}")
        groups = ["test"] * (arguments.command == "test") + ["cluster"] * bool(arguments.cluster)
        set_up([requirement for group in groups for requirement in dependency_group(group)], arguments.build)
        if arguments.command in ("page", "test") and not shutil.which("npm"):
            set_up_npm()
        return hand_over([VENV_PYTHON, __file__, "--no-venv", "--end-with", str(os.getpid()), *sys.argv[1:]])
    if not find_spec(needed := NEEDED[arguments.command]):
        sys.exit(f"run.py: {needed} is not installed for this Python: leave out --no-venv, or install requirements.txt")
    end_together(arguments.end_with)
    if arguments.command == "lab":
        os.chdir(ROOT)
        silent = "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"  # it would ask PyPI at every start
        return hand_over([sys.executable, "-m", "jupyter", "lab", "EDA.ipynb", silent, *arguments.jupyter])
    if arguments.command == "test":
        return run_tests()
    if arguments.command != "run":
        return use_run(arguments, settings.get("NAME", ""), settings.get("DATA", ""))
    folder = ROOT if arguments.in_place else ROOT / "runs" / settings.get("NAME", "")
    return run_notebooks(settings, folder, arguments.quick)


def on_stop(action: Callable[[int, object], None]) -> None:
    """Call `action` on a signal that asks this process to end, unless it is ignored, as under nohup."""
    for name in STOPS:
        number = getattr(signal, name, None)  # no system has all of them
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, action)


def hand_over(command: list) -> int:
    """Let another program take the place of this process, so that signals reach it; → exit code."""
    if os.name != "nt":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows, both are there: Ctrl-C is for the other one to answer
    return subprocess.run(command).returncode


def end_together(parent: int | None) -> None:
    """See to it that nothing goes on when this process ends, or the `parent` that waits for it on Windows."""
    import psutil  # before a signal arrives, and a second one while it is imported

    def stop(number: int, frame: object) -> None:
        for process in psutil.Process().children(recursive=True):  # a kernel comes before its own children
            with suppress(psutil.Error):
                process.kill()
        with suppress(OSError):  # the terminal may be gone
            os.write(2, b"stopped\n")
        os._exit(128 + number)  # at once, since a clean-up would write half a notebook

    def follow(process: psutil.Process) -> None:
        psutil.wait_procs([process])
        stop(signal.SIGTERM, None)

    on_stop(stop)
    if parent not in (None, os.getpid()):
        threading.Thread(target=follow, args=[psutil.Process(parent)], daemon=True).start()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=list(NEEDED), default="run")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of images, in one folder per class")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="table of file and class, if folders are none")
    parser.add_argument("--name", metavar="RUN", help="results go to checkpoints/RUN, runs/RUN (default: DIR's name)")
    parser.add_argument("--arch", metavar="NAME", help="network: efficientnet_lite0@128, conv_net, ... (default: auto)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler, as tcp://head:8786, or local")
    parser.add_argument("--quick", action="store_true", help="one network, one round of folds, no further evidence")
    parser.add_argument("-p", dest="settings", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="predict: write a table of all probabilities, too")
    parser.add_argument("--sort", type=Path, metavar="DIR", help="predict: copy the photos here, a folder per class")
    build = parser.add_mutually_exclusive_group()
    for kind, how in {"cpu": "without CUDA, from its own index", "cuda": "with CUDA, card or no card"}.items():
        build.add_argument(f"--{kind}", dest="build", action="store_const", const=kind, help=f"Linux: PyTorch {how}")
    parser.add_argument("--no-venv", action="store_true", help="use this interpreter instead of .venv")
    parser.add_argument("--in-place", action="store_true", help="write outputs into the notebooks themselves")
    parser.add_argument("--end-with", type=int, help=argparse.SUPPRESS)  # the process that waits for this one
    arguments, others = parser.parse_known_args()  # photos, or options of JupyterLab
    arguments.photos = [word for word in others if not word.startswith("-")]
    arguments.jupyter = others
    known = {"lab": others, "predict": arguments.photos, "judge": arguments.photos}.get(arguments.command, [])
    if unknown := [word for word in others if word not in known]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    needs = {"predict": "photos or folders: photo.jpg more/photos", "judge": "what check.py wrote: answers_….json"}
    if arguments.command in needs and not arguments.photos:
        parser.error(f"{arguments.command} needs {needs[arguments.command]} --name RUN")
    if arguments.command != "predict" and (arguments.csv or arguments.sort):
        parser.error("--csv and --sort go with predict")
    if arguments.labels and not arguments.data:
        parser.error("--labels goes with --data, the folder of the images")
    return arguments


def read_settings(arguments: argparse.Namespace) -> dict:
    """Turn the options into notebook settings, and stop with one sentence where one makes no sense."""
    settings = {}
    for item in arguments.settings:
        name, equals, value = item.partition("=")
        if not equals:
            sys.exit(f"run.py: -p {item}: expected SETTING=VALUE")
        settings[name] = literal(value)
    folder = arguments.data
    if folder:
        if not folder.is_dir():
            sys.exit(f"run.py: --data {folder}: no such folder. Give one that holds a folder of images per class")
        settings["DATA"] = as_typed(folder)
    if arguments.labels:
        if not arguments.labels.is_file():
            sys.exit(f"run.py: --labels {arguments.labels}: no such file. Give a table with columns of file and class")
        settings["LABELS"] = as_typed(arguments.labels)
    name = str(arguments.name or settings.get("NAME") or (folder.resolve().name if folder else ""))
    if Path(name).name != name or name == "..":
        sys.exit(f"run.py: --name {name}: a plain name is needed, not a path")
    if name:
        settings["NAME"] = name
    if arguments.arch:
        settings["ARCH"] = arguments.arch
    if arguments.cluster:
        settings["CLUSTER"] = arguments.cluster
    if arguments.quick:
        settings.setdefault("REPEATS", 1)
        if folder and not {"BUDGET_MS", "BUDGET_KB", "NETWORKS"} & set(settings):
            settings.setdefault("ARCH", QUICK_ARCH)
    known = {name for notebook in NOTEBOOKS for name in known_settings(read_notebook(notebook))}
    if unknown := sorted(set(settings) - known):
        sys.exit(f"run.py: no notebook has a setting {', '.join(unknown)}. There are {', '.join(sorted(known))}")
    return settings


def as_typed(path: Path) -> str:
    """Write a path as notebooks read it, from the project: no more of a private folder's name than was typed."""
    whole = path.resolve()
    if whole.is_relative_to(ROOT):
        return whole.relative_to(ROOT).as_posix()
    return str(path if path.is_absolute() or Path.cwd() == ROOT else whole)


def literal(text: str) -> object:
    """Read a Python value; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_notebook(name: str) -> dict:
    """Read a notebook as JSON."""
    return json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))


def parameters_cell(notebook: dict) -> int:
    """Find the cell tagged ``parameters``."""
    tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    return next(position for position, names in enumerate(tags) if "parameters" in names)


def known_settings(notebook: dict) -> list[str]:
    """List the names that a notebook's parameters cell assigns."""
    tree = ast.parse("".join(notebook["cells"][parameters_cell(notebook)]["source"]))
    return [statement.targets[0].id for statement in tree.body if isinstance(statement, ast.Assign)]


def dependency_group(name: str) -> list[str]:
    """Read what only the tests, the page or a cluster need from pyproject.toml."""
    import tomllib  # here, since an older Python does not have it

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"][name]


def lack_of_builds(system: str, machine: str, largest: int) -> str:
    """Say why PyTorch and ONNX Runtime cannot be installed, nothing where they can; `largest` is sys.maxsize."""
    if largest < 2**32:
        return "this Python has 32 bits, and PyTorch and ONNX Runtime need 64: install a 64-bit Python"
    if system == "darwin" and machine == "x86_64":
        return "PyTorch and ONNX Runtime are no longer made for Intel Macs: on Apple silicon, use a Python for arm64"
    return ""


def set_up(extra: list[str], build: str | None = None) -> None:
    """Make .venv from the lock, once; a set-up that was cut short is done again, since its mark comes last.

    `build` asks for PyTorch's "cpu" or "cuda" build; a .venv that has another one stays as it is.
    """
    wanted = dict.fromkeys(extra, "extra")
    wanted["lock"] = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    mark = VENV / "installed.json"
    installed = read_mark(mark) if VENV_PYTHON.exists() else {}
    is_new = installed.get("lock") != wanted["lock"]
    if build and not is_new and installed.get("build") != build and sys.platform == "linux":
        print(f".venv was made without --{build} and stays as it is: remove the folder to have it made anew")
    if wanted.items() <= installed.items():
        return
    try:
        if is_new:
            print("Setting up .venv, once: some minutes", flush=True)
            mark.unlink(missing_ok=True)
            venv.create(VENV, with_pip=True, clear=True)
            installed = {"build": install_torch(build)}
        install(["-r", str(LOCK), *extra])
        written = mark.with_suffix(".writing")
        written.write_text(json.dumps(installed | wanted), encoding="utf-8")
        os.replace(written, mark)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "output", None) or b"").decode(errors="replace").splitlines() or [str(error)]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])  # pip's own word, if there is one
        sys.exit(f"\nrun.py: .venv cannot be made: {reason}. It takes up to 7 GB, where you may write")


def set_up_npm() -> None:
    """Add npm, which fetches what lets a browser run the model; where it cannot be had, the page goes without."""
    try:
        set_up(dependency_group("page"))
    except SystemExit as error:
        if not isinstance(error.code, str):  # a signal, not a failed installation
            raise
        print(error)


def read_mark(mark: Path) -> dict:
    """Read what a finished set-up wrote; a mark that is missing or damaged says that nothing is installed."""
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def install_torch(build: str | None) -> str:
    """Install PyTorch without CUDA where that would be of no use; → "cpu", or "cuda" where it comes with the lock."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.startswith(("torch==", "torchvision=="))]
    if not pins or not wants_cpu_build(build):
        return "cuda"
    # the index is asked for these two alone; what they need comes with the lock, from wherever pip always looks
    options = ["--no-deps", f"--index-url={CPU_INDEX}", "--timeout=15", "--retries=1"]
    if run_pip([*options, *pins], PATIENCE) == 0:
        return "cpu"
    print(f"\rPyTorch without CUDA cannot be had from {CPU_INDEX}: it comes with CUDA, 3 GB more", flush=True)
    return "cuda"


def wants_cpu_build(build: str | None) -> bool:
    """Tell whether to ask PyTorch's own index: on Linux, as elsewhere PyTorch comes without CUDA anyway."""
    if sys.platform != "linux" or build == "cuda":
        return False
    return build == "cpu" or not (has_nvidia_driver() or has_own_sources())


def has_nvidia_driver() -> bool:
    """Tell whether an NVIDIA card can be used here."""
    import ctypes  # here, since a Python that was built without it must get as far as the check of its version

    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_own_sources() -> bool:
    """Tell whether pip was told where to find packages, as in a firm: then no other host is asked."""
    command = [VENV_PYTHON, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    names = [line.partition("=")[0] for line in done.stdout.splitlines()]  # as global.index-url, :env:.find-links
    return any(name.rpartition(".")[2] in SOURCES for name in names)


def install(requirements: list[str]) -> None:
    """Install with pip, or stop with the last that it said."""
    if run_pip(requirements):
        log = VENV / "install.log"
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        advice = "check the network and the space on the disk, and run this again"
        sys.exit(f"\n{tail}\nrun.py: the installation failed (all of it is in {log}): {advice}")
    print(f"\r{'Set up.':78}", flush=True)


def run_pip(arguments: list[str], patience: float = 0) -> int:
    """Install with pip, showing which package it is at; what it said is added to .venv/install.log; → exit code.

    With `patience`, in seconds, pip is ended if it has found no package by then.
    """
    command = [VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    alarm = threading.Timer(patience, process.kill)
    if patience:
        alarm.start()
    try:
        with (VENV / "install.log").open("a", encoding="utf-8") as file:
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                print(text, file=file)
                if text.lstrip().startswith(("Downloading", "Using cached")):
                    alarm.cancel()
                if sys.stdout.isatty() and text.startswith(("Collecting", "Installing")):
                    print(f"\r{text:78.78}", end="", flush=True)
    except BaseException:  # a signal to end, or a full disk
        process.kill()
        raise
    finally:
        alarm.cancel()
    return process.wait()


def run_notebooks(settings: dict, folder: Path, quick: bool = False) -> int:
    """Execute the notebooks in order into `folder`, a line for each, and print the result; → exit code."""
    results, begun = prepare_places(settings, folder), time.perf_counter()
    for name in NOTEBOOKS:
        print(f"{name:16}", end="", flush=True)
        started = time.perf_counter()
        if failure := execute(name, settings, folder / f"{name}.ipynb", quick):
            print(f"stopped\n\n{failure}", file=sys.stderr)
            return 1
        report = json.loads((results / "report.json").read_text(encoding="utf-8"))
        print(f"{time.perf_counter() - started:5.0f} s   {headline(name, report).lstrip()}")
    print(f"{'all four':16}{time.perf_counter() - begun:5.0f} s")
    print_result(report, settings.get("NAME", ""), folder, results)
    if quick:
        print(f"\n{wrap(LEFT_OUT)}")
    return 0


def prepare_places(settings: dict, folder: Path) -> Path:
    """Make the folder of the notebooks and return that of the results, or stop before anything is computed."""
    from utils.config import InputError, make_folder, project_path, run_folder
    from utils.report import check_folder

    try:
        results = run_folder(settings.get("NAME", ""))
        check_folder(results, project_path(settings.get("DATA", "data/train")))
        make_folder(folder)
    except InputError as error:
        sys.exit(f"run.py: {error}")
    return results


def execute(name: str, settings: dict, target: Path, quick: bool = False) -> str | None:
    """Run one notebook with `settings` in place of its own and write it to `target`; → what went wrong, if anything.

    If it is to be `quick`, its further evidence is left out.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    from utils.config import InputError
    from utils.files import whole_file

    notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    prepare(notebook, settings)
    if quick:
        leave_out_further_evidence(notebook)
    failure = None
    try:
        run_cells(notebook)
    except CellExecutionError as error:
        failure = f"{name}.ipynb: {error.evalue}" if error.ename == "InputError" else describe(error, target)
    except DeadKernelError:
        failure = f"{name}.ipynb: the Python process died, most likely because memory ran out"
    drop_progress_bars(notebook)
    try:
        with whole_file(target) as temporary:
            temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    except (InputError, OSError) as error:  # on Windows, also where another program holds the file open
        failure = str(error)
    return failure


def describe(error: Exception, target: Path) -> str:
    """Give a cell's error in full, without the colors of a terminal, and say what it means to who ran it."""
    what = f"run.py: {target.name} stopped at the cell above, most likely by a fault of the program, not of your photos"
    meaning = f"{what}: please report it with these lines. {target.relative_to(ROOT)} shows how far it came."
    return re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip() + "\n\n" + wrap(meaning)


def prepare(notebook, settings: dict) -> None:
    """Clear a notebook, or an error would stand above another run's results, and put `settings` below its own."""
    from nbformat.v4 import new_code_cell

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    known = known_settings(notebook)
    lines = [f"{name} = {value!r}" for name, value in settings.items() if name in known]
    if lines:
        said = "# set on the command line, instead of what stands above"
        cell = new_code_cell("\n".join([said, *lines]), metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(parameters_cell(notebook) + 1, cell)


def leave_out_further_evidence(notebook) -> None:
    """Keep the main line alone, and say so in its last cell."""
    from nbformat.v4 import new_markdown_cell

    end = next(place for place, cell in enumerate(notebook.cells) if cell.source.startswith("# Further evidence"))
    notebook.cells[end:] = [new_markdown_cell(LEFT_OUT)]


def run_cells(notebook) -> None:
    """Run all cells in a kernel of their own, which ends with them."""
    from nbclient import NotebookClient

    client = NotebookClient(notebook, kernel_name="python3", record_timing=False)
    # this very interpreter, whatever kernels the user has installed; it logs nothing, as the interrupt with which it is
    # asked to end, and to remove its temporary files, would be logged as an error; and it looks for garbage less often,
    # as libraries make a million objects while they are imported, and none of them is
    command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=50", "-f", "{connection_file}"]
    command.append("--IPKernelApp.exec_lines=import gc; gc.set_threshold(50_000)")
    client.create_kernel_manager().kernel_spec.argv = command
    with client.setup_kernel(cwd=str(ROOT)):  # not client.execute(), which would answer signals in its own way
        for position, cell in enumerate(notebook.cells):
            client.execute_cell(cell, position)
        about = client.wait_for_reply(client.kc.kernel_info())
        notebook.metadata.language_info = about["content"]["language_info"]


def drop_progress_bars(notebook) -> None:
    """Remove what progress bars leave: an empty output, or, from other libraries, a widget that is dead in a file."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [output for output in cell.outputs if output.get("data") or "data" not in output]
            cell.outputs = [output for output in shown if not any("widget" in kind for kind in output.get("data", []))]


def headline(name: str, report: dict) -> str:
    """Say in a few lines what a notebook found, each below the first one's beginning."""
    from utils.report import render

    indent = " " * 26  # of the notebook's name and its seconds
    return wrap(render("headline.txt", notebook=name, report=report), initial_indent=indent, subsequent_indent=indent)


def wrap(text: str, **indents: str) -> str:
    """Break lines that are too long, but no name of a file."""
    whole = {"break_long_words": False, "break_on_hyphens": False} | indents
    return "\n".join(textwrap.fill(line, WIDTH, **whole) for line in text.splitlines())


def print_result(report: dict, name: str, folder: Path, results: Path) -> None:
    """Print how good the model is, which file to use and why, a table of the files, and what to do next."""
    from utils.config import relative
    from utils.report import DEPLOYED, render

    option = f' --name "{name}"' if name else ""
    suspects = len(report["dataset"].get("suspects", []))
    next_steps = [
        ("one page to share, with the model to try", f"python run.py page{option}"),
        ("classify photos, or folders of them", f"python run.py predict photo.jpg{option}"),
        ("try the model on another device", f"python run.py kit{option}"),
        (f"{suspects} photos to look at: hard ones, or in the wrong folder", relative(results / "suspects.csv")),
        ("the notebooks, with their plots", "*.ipynb" if folder == ROOT else relative(folder)),
        ("models, report.json and MODEL_CARD.md", relative(results)),
    ]
    if not suspects:
        del next_steps[3]
    width = max(len(how) for _, how in next_steps)
    ship = report["comparison"]["verdict"]["ship"]  # which may be somebody's own file, by MODELS and PAIR
    deployed = report["train"]["arch"] + DEPLOYED[ship] if ship in DEPLOYED else None
    text = render("result.txt", report=report, deployed=deployed, next_steps=next_steps, width=width)
    print(f"\n{wrap(text)}")


def use_run(arguments: argparse.Namespace, name: str, data: str) -> int:
    """Do what a finished run is for: predict, page, kit, judge; → exit code, 1 after a sentence on what is wrong."""
    from utils.config import InputError

    try:
        if arguments.command == "predict":
            from utils.predict import classify
            from utils.report import shipped_file

            return classify(shipped_file(name), arguments.photos, arguments.csv, arguments.sort)
        if arguments.command == "page":
            from utils.compare_models.page import write_page

            page, missing = write_page(name, data)
            size = page.stat().st_size / 1e6
            print(f"{page.relative_to(ROOT)} ({size:.1f} MB): opens with a double click, and needs no network")
            if missing:
                print(f"The model cannot be tried in it: {missing}")
        if arguments.command == "kit":
            from utils.compare_models.kit import write_kit

            kit = write_kit(name, data).relative_to(ROOT)
            print(f"{kit} and kit.zip beside it: carry them to the device; README.md in it says what to type")
        if arguments.command == "judge":
            from utils.compare_models.kit import judge
            from utils.report import render

            print(render("elsewhere.md", rows=judge([Path(file) for file in arguments.photos], name)))
    except InputError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    return 0


def run_tests() -> int:
    """Lint, then test; → exit code."""
    commands = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest"]]
    codes = [subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode for command in commands]
    for command, code in zip(commands, codes, strict=True):
        if code:
            print(f"{' '.join(command)}: exit code {code}", file=sys.stderr)  # below 0: the signal that ended it
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
