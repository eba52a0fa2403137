"""Set up, run the four notebooks, open them in JupyterLab, or test. Needs Python 3.11 or newer and nothing else.

python run.py                                     the four notebooks on the embedded fruit
python run.py --data my/photos --name mine        the same on a folder of your own, one folder per class in it
python run.py -p FINE_TUNE_EPOCHS=5 -p SEED=1     with other settings (the second cell of each notebook)
python run.py lab                                 open JupyterLab here; its own options, as --allow-root, may follow
python run.py test                                lint and test
"""

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ["EDA", "train", "onnx_quant", "compare_models"]
NEEDED = {"run": "nbclient", "lab": "jupyterlab", "test": "pytest"}
LOCK = ROOT / "requirements.txt"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> int:
    """Read the command line, set up what is missing, and do what was asked."""
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"run.py needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to stop
    # torch's threads sleep while they wait: where others work too, spinning makes them ten times as slow
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = parse_arguments()
    settings = read_settings(arguments) if arguments.command == "run" else {}
    if not arguments.no_venv:
        set_up([] if arguments.command != "test" else test_requirements())
        return subprocess.run([VENV_PYTHON, __file__, "--no-venv", *sys.argv[1:]]).returncode
    if not find_spec(needed := NEEDED[arguments.command]):
        sys.exit(
            f"run.py: {needed} is not installed for this Python: leave out --no-venv, or install what requirements.txt "
            "lists and, for tests, pyproject.toml"
        )
    if arguments.command == "lab":
        command = [sys.executable, "-m", "jupyter", "lab", "EDA.ipynb", *arguments.jupyter]
        return subprocess.run(command, cwd=ROOT).returncode
    if arguments.command == "test":
        return run_tests()
    return run_notebooks(settings, ROOT if arguments.in_place else ROOT / "runs" / settings.get("NAME", ""))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["run", "lab", "test"], default="run")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with one folder of images per class")
    parser.add_argument(
        "--name", metavar="RUN", help="results go to checkpoints/RUN and runs/RUN (default: DIR's name)"
    )
    parser.add_argument("--arch", metavar="NAME", help="network: conv_net (default), efficientnet_lite0, ...")
    parser.add_argument("-p", dest="settings", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--no-venv", action="store_true", help="use this interpreter instead of .venv")
    parser.add_argument("--in-place", action="store_true", help="write outputs into the notebooks themselves")
    arguments, arguments.jupyter = parser.parse_known_args()
    if arguments.jupyter and arguments.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(arguments.jupyter)}")
    return arguments


def read_settings(arguments: argparse.Namespace) -> dict:
    """Turn the options into notebook settings, and stop with one sentence where one makes no sense."""
    if incomplete := [item for item in arguments.settings if "=" not in item]:
        sys.exit(f"run.py: -p {incomplete[0]}: expected SETTING=VALUE")
    settings = dict(item.partition("=")[::2] for item in arguments.settings)
    settings = {name: literal(value) for name, value in settings.items()}
    if arguments.data:
        if not arguments.data.is_dir():
            sys.exit(
                f"run.py: --data {arguments.data}: no such folder. Give one that holds a folder of images per class"
            )
        settings["DATA"] = str(arguments.data.resolve())
    given = arguments.name or settings.get("NAME", "")
    if name := str(given or (arguments.data.resolve().name if arguments.data else "")):
        settings["NAME"] = name
        if Path(name).name != name or name == "..":
            sys.exit(f"run.py: --name {name}: a plain name is needed, not a path")
    if arguments.arch:
        settings["ARCH"] = arguments.arch
    known = {name for notebook in NOTEBOOKS for name in known_settings(read_notebook(notebook))}
    if unknown := sorted(set(settings) - known):
        sys.exit(f"run.py: no notebook has a setting {', '.join(unknown)}. There are {', '.join(sorted(known))}")
    return settings


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
    return next(position for position, each in enumerate(tags) if "parameters" in each)


def known_settings(notebook: dict) -> list[str]:
    """List the names that a notebook's parameters cell assigns."""
    tree = ast.parse("".join(notebook["cells"][parameters_cell(notebook)]["source"]))
    return [statement.targets[0].id for statement in tree.body if isinstance(statement, ast.Assign)]


def test_requirements() -> list[str]:
    """Read what only the tests need from pyproject.toml."""
    import tomllib  # here, so that an older Python gets as far as being told

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["test"]


def set_up(extra: list[str]) -> None:
    """Make .venv from the lock, once; a set-up that was cut short is done again, since its mark comes last."""
    wanted = {"lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(), **dict.fromkeys(extra, "extra")}
    mark = VENV / "installed.json"
    installed = read_mark(mark) if VENV_PYTHON.exists() else {}
    if wanted.items() <= installed.items():
        return
    try:
        if installed.get("lock") != wanted["lock"]:
            print("Setting up .venv, once: some minutes, and on Linux several GB, as PyTorch brings CUDA", flush=True)
            mark.unlink(missing_ok=True)
            installed = {}
            venv.create(VENV, with_pip=True, clear=True)
        install(["-r", str(LOCK), *extra])
        write_whole(mark, json.dumps(installed | wanted))
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "output", None) or b"").decode(errors="replace").splitlines() or [str(error)]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])  # pip's own word, if there is one
        sys.exit(f"\nrun.py: .venv cannot be made: {reason}. It takes several GB: make room and run this again")


def read_mark(mark: Path) -> dict:
    """Read what a finished set-up wrote; a mark that is missing or damaged says that nothing is installed."""
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def install(requirements: list[str]) -> None:
    """Install with pip, showing which package it is at; what it said stays in .venv/install.log."""
    command = [
        VENV_PYTHON,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        *requirements,
    ]
    log = VENV / "install.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
        for line in process.stdout:
            file.write(line)
            if sys.stdout.isatty() and line.startswith(("Collecting", "Installing")):
                print(f"\r{line.strip():78.78}", end="", flush=True)
    if process.wait():
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        sys.exit(
            f"\n{tail}\nrun.py: the installation failed (all of it is in {log}). Check the network and "
            "the space on the disk, and run this again"
        )
    print(f"\r{'Set up.':78}", flush=True)


def run_notebooks(settings: dict, folder: Path) -> int:
    """Execute the notebooks in order into `folder`, a line for each, and print the result; → exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    report = ROOT / "checkpoints" / settings.get("NAME", "") / "report.json"
    for name in NOTEBOOKS:
        print(f"{name:16}", end="", flush=True)
        started = time.perf_counter()
        if error := execute(name, settings, folder / f"{name}.ipynb"):
            print(f"stopped\n\n{error}", file=sys.stderr)
            return 1
        print(
            f"{time.perf_counter() - started:5.0f} s   {headline(name, json.loads(report.read_text(encoding='utf-8')))}"
        )
    print_result(json.loads(report.read_text(encoding="utf-8")))
    shown = [path.relative_to(ROOT) if path != ROOT else "the notebooks" for path in (folder, report.parent)]
    print(f"Plots: {shown[0]}   models, report.json and MODEL_CARD.md: {shown[1]}")
    return 0


def execute(name: str, settings: dict, target: Path) -> str | None:
    """Run one notebook with `settings` in place of its own and write it to `target`; → what went wrong, if anything."""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    if own := {key: value for key, value in settings.items() if key in known_settings(notebook)}:
        lines = [f"{key} = {value!r}" for key, value in own.items()]
        cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(parameters_cell(notebook) + 1, cell)
    manager = AsyncKernelManager(kernel_name="python3")
    # this very interpreter, whatever kernels the user has installed
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=40", "-f", "{connection_file}"]
    client = NotebookClient(
        notebook, km=manager, timeout=None, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{name}.ipynb: {error.evalue}" if error.ename == "InputError" else str(error)
    except DeadKernelError:
        return f"{name}.ipynb: the Python process died, most likely because memory ran out"
    finally:
        drop_progress_bars(notebook)
        write_whole(target, nbformat.writes(notebook) + "\n")
    return None


def write_whole(target: Path, text: str) -> None:
    """Replace a file in one step, or stop with one sentence and leave it as it was."""
    temporary = target.with_suffix(".writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        sys.exit(
            f"\nrun.py: {target.relative_to(ROOT)} cannot be written: {error.strerror}. Mend that (a full disk, most "
            "often) and run this again"
        )


def drop_progress_bars(notebook) -> None:
    """Remove what progress bars leave: an empty output, or, from other libraries, a widget that is dead in a file."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if not is_progress_bar(each)]


def is_progress_bar(output: dict) -> bool:
    """Tell whether an output was a progress bar."""
    return "data" in output and (not output["data"] or any("widget" in kind for kind in output["data"]))


def headline(name: str, report: dict) -> str:
    """Say in a line what a notebook found."""
    if name == "EDA":
        dataset = report["dataset"]
        counts = some(f"{label} {count}" for label, count in dataset["classes"].items())
        refused = "".join(f"\n{'':24}refused: {each['path']}: {each['reason']}" for each in dataset["refused"])
        return f"{dataset['images']} images ({counts}), {dataset['groups']} groups{refused}"
    if name == "train":
        section = report["train"]
        scores = (section["oof_macro_f1"], *section["oof_macro_f1_ci95"], section["test_macro_f1"])
        return "macro-F1 {:.3f} out of fold ({:.3f} to {:.3f}), {:.3f} on the test part".format(*scores)
    if name == "onnx_quant":
        return f"{report['quantization']['recipe']}, parity {report['quantization']['parity_max_abs_diff']:.0e}"
    (first, second), pairs = report["comparison"]["pair"], report["comparison"]["pairs"]
    where, pair = next(iter(pairs.items()))
    return f"{second} gives the answers of {first} on {pair['agreement']:.1%} of {pair['images']} images ({where})"


def some(names: Iterable[str], limit: int = 8) -> str:
    """Write names in a row; of many, the first ones."""
    names = list(names)
    return ", ".join(names[:limit]) + ", ..." * (len(names) > limit)


def print_result(report: dict) -> None:
    """Print the comparison table, the verdict, and what limits both."""
    print(f"\n{'model':10}{'test macro-F1':>28}{'kB':>10}{'ms, batch 1':>14}")
    for name, model in report["comparison"]["models"].items():
        low, high = model["ci95"]
        latency = next(iter(model["latency_ms"].values()))["p50"]
        print(
            f"{name:10}{model['macro_f1']:10.3f} ({low:.3f} to {high:.3f}){model['bytes'] / 1000:10,.0f}{latency:14.2f}"
        )
    verdict = report["comparison"]["verdict"]
    print(f"\nShip {verdict['ship']}: {verdict['reason']}.")
    if series := report["dataset"]["series"]:
        print(
            f"Caution: the images of {some(series)} look like views of one object, which is both trained on and "
            "tested. These scores prove little about other objects."
        )


def run_tests() -> int:
    """Lint, then test; → exit code."""
    commands = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest"]]
    return max(subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
