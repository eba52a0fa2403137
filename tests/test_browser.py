"""JupyterLab as `python run.py lab` starts it, in a real browser: restart, run all cells, and look at what is shown."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import CHROMIUM, copy_project
from playwright.sync_api import Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.browser
TOKEN = "for-the-test"
GARBAGE = re.compile(r"HBox\(|FloatProgress|\d%\|[█#▏▎▍▌▋▊▉ ]+\||<Figure size|Error displaying widget|object at 0x")
ERRORS = "[data-mime-type$=error], [data-mime-type$=stderr]"
PROMPTS = ".jp-CodeCell .jp-InputArea-prompt"
MINUTE = 60_000  # in Playwright's milliseconds


def ask(url: str, method: str = "GET") -> None:
    request = urllib.request.Request(url, method=method, headers={"Authorization": f"token {TOKEN}"})
    urllib.request.urlopen(request, timeout=10).close()


def wait_until_up(process: subprocess.Popen, url: str) -> None:
    while True:
        assert process.poll() is None, "run.py lab ended at once"
        try:
            return ask(f"{url}/api/status")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the project, with no settings of this machine's user."""
    folder = tmp_path_factory.mktemp("lab")
    project = copy_project(folder / "과일 분류")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"open_browser": False, "allow_root": True, "ip": "127.0.0.1", "port_retries": 0}})
    )
    own = {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTER_PORT": str(port), "JUPYTER_TOKEN": TOKEN}
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, project / "run.py", "--no-venv", "lab"]
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait_until_up(process, url)
    yield url
    ask(f"{url}/api/shutdown", method="POST")
    assert process.wait(timeout=30) == 0, (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def page(lab):
    """A browser that followed the link which JupyterLab opens."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{lab}/lab/tree/EDA.ipynb?token={TOKEN}")
        yield page
        browser.close()


def run_all(page: Page, name: str) -> Locator:
    """Open a notebook, restart its kernel and run all cells; wait for the last cell's number or an error."""
    page.locator(".jp-DirListing-item", has_text=f"{name}.ipynb").dblclick(timeout=MINUTE)
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)", has=page.get_by_role("heading", name=name))
    expect(panel.locator(".jp-Toolbar-kernelName")).to_have_text("Python 3 (ipykernel)", timeout=MINUTE)
    expect(page.locator(".jp-StatusBar-Widget")).to_contain_text("| Idle", timeout=MINUTE)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells…").click()
    page.locator(".jp-Dialog", has_text="Restart Kernel?").locator(".jp-mod-accept").click()
    last = panel.locator(PROMPTS).last
    expect(last).to_have_text("[*]:", timeout=MINUTE)  # the number of the committed run is gone
    finished = last.filter(has_text=re.compile(r"\[\d+\]:"))
    finished.or_(panel.locator(ERRORS).first).first.wait_for(state="attached", timeout=2 * MINUTE)
    return panel


def look_through(page: Page, panel: Locator, folder: Path) -> None:
    """Bring every plot on the screen, as JupyterLab draws only what is seen, and keep a picture of each."""
    for number, plot in enumerate(panel.locator(".jp-Cell-outputArea:has(img)").all()):
        plot.scroll_into_view_if_needed()
        page.screenshot(path=folder / f"{number:02d}.png")


@pytest.mark.parametrize("name", ["EDA", "train"])
def test_run_all_shows_plots_and_no_error(page, name, tmp_path):
    panel = run_all(page, name)
    look_through(page, panel, tmp_path)
    assert panel.locator(ERRORS).all_text_contents() == []
    prompts = panel.locator(PROMPTS).all_text_contents()
    assert prompts == [f"[{number}]:" for number in range(1, len(prompts) + 1)]
    sizes = panel.locator(".jp-OutputArea-output img").evaluate_all("all => all.map(e => [e.width, e.height])")
    assert sizes and all(min(size) > 50 for size in sizes), sizes
    assert panel.locator(".jupyter-widgets:visible").count() == 0, "a progress bar is left"
    texts = panel.locator(".jp-OutputArea-output").all_text_contents()
    assert not [text for text in texts if GARBAGE.search(text)]
