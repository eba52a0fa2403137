"""JupyterLab as `python run.py lab` starts it, in a real browser: all cells run, the notebook saved and opened again.

`SCREENSHOTS=folder` keeps a picture of each notebook as it was seen.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from conftest import copy_project
from playwright.sync_api import Error, Page

pytestmark = pytest.mark.browser
SMALL = {
    "EDA": {},
    "train": {"FINE_TUNE_EPOCHS": 1, "FOLDS": 3, "REPEATS": 1},
    "onnx_quant": {"FOLD_NETWORKS": 1},
    "compare_models": {"BATCH_SIZES": (1, 4), "ROUNDS": 4},
}
FRUITS = {"apple": 5, "cherry": 5, "tomato": 3}  # to keep; tomatoes stay the minority
PATIENCE = 300_000  # ms for a notebook, however busy the machine is; a few seconds are enough
GARBAGE = re.compile(
    r"HBox\(|FloatProgress|it/s\]|\d%\||Error displaying widget|<Figure size|object at 0x|\x1b\[|\ufffd"
)
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(each => each.textContent);
    return /[0-9]/.test(prompts.at(-1)) || document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
}"""
WIDTHS = """() => [...document.querySelectorAll('.jp-OutputArea-output img')].map(
    image => image.naturalWidth && image.getBoundingClientRect().width)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """JupyterLab on a copy of the project, and without this user's own settings: the copy, and the address with {}."""
    home, project = tmp_path_factory.mktemp("home"), copy_project(tmp_path_factory.mktemp("실험실") / "과일 분류")
    for name, settings in SMALL.items():
        without_outputs(project / f"{name}.ipynb", settings)
    for photo in project.glob("data/train/*/*.jpg"):
        if int(photo.stem.split("_")[1]) >= FRUITS[photo.parent.name]:
            photo.unlink()
    # containers run as root
    config = {"ServerApp": {"allow_root": True, "open_browser": False, "port": free_port()}}
    (home / "jupyter_server_config.json").write_text(json.dumps(config), encoding="utf-8")
    folders = {f"JUPYTER_{kind}_DIR": str(home) for kind in ("CONFIG", "DATA", "RUNTIME")} | {"IPYTHONDIR": str(home)}
    with (home / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, project / "run.py", "--no-venv", "lab"],
            cwd=home, env=os.environ | folders, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield project, address(home, server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def without_outputs(path: Path, settings: dict) -> None:
    """Strip a notebook, so that whatever is seen comes from this run, and make it quick."""
    notebook = nbformat.read(path, as_version=4)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    nbformat.write(notebook, path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def address(home: Path, server: subprocess.Popen) -> str:
    """Wait until the server answers; it says where in its runtime folder."""
    while not list(home.glob("jpserver-*.json")):
        assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
        time.sleep(0.2)
    time.sleep(1)
    running = json.loads(next(home.glob("jpserver-*.json")).read_text(encoding="utf-8"))
    return f"{running['url']}lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={running['token']}"


@pytest.mark.parametrize("name", SMALL)
def test_restart_and_run_all(lab, browser, name):
    """In the order of the notebooks: each needs what the one before it wrote."""
    project, address = lab
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(address.format(name))
    restart_and_run_all(page)
    cells = save(page, project / f"{name}.ipynb")
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"]

    page.reload()  # as whoever opens it tomorrow
    plots = sum("image/png" in each.get("data", {}) for each in outputs)
    look_at_all(page, len(cells), plots)
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")
    prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_text_contents()
    assert prompts == [f"[{number}]:" for number in range(1, len(prompts) + 1)]
    texts = page.locator(".jp-OutputArea-output").all_text_contents()
    assert not [text for text in texts if GARBAGE.search(text)]
    assert min(page.evaluate(WIDTHS)) > 100
    page.close()


def restart_and_run_all(page: Page) -> None:
    """Do what the README says, through the menu, and wait for the last cell or an error."""
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_timeout(1000)  # JupyterLab loses a kernel that is restarted in its first moment
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function(FINISHED)


def save(page: Page, path: Path) -> list:
    """Press Ctrl+S; → the cells in the file."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    while path.stat().st_mtime_ns == before:
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    return nbformat.read(path, as_version=4).cells


def scroll_to_the_end(page: Page) -> None:
    """Scroll to the last cell that is drawn, unless JupyterLab is just drawing it anew."""
    with suppress(Error):
        page.locator(".jp-Notebook .jp-Cell").last.scroll_into_view_if_needed()


def look_at_all(page: Page, cells: int, plots: int) -> None:
    """Make the window as high as the notebook, since JupyterLab draws only what is in sight, and wait for all of it."""
    page.locator(".jp-Notebook").wait_for()
    page.set_viewport_size({"width": 1300, "height": 16_000})
    while page.locator(".jp-Notebook .jp-Cell").count() < cells:
        scroll_to_the_end(page)
        page.wait_for_timeout(200)
    scroll_to_the_end(page)
    page.wait_for_function(f"() => ({WIDTHS})().filter(Boolean).length == {plots}")
    page.wait_for_timeout(1000)
