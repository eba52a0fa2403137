"""Progress bars, in a notebook's kernel."""

import pytest
from conftest import ROOT
from jupyter_client.manager import start_new_kernel

from utils.parallel import progress

CELL = """
from utils.parallel import progress
for _ in progress(range(3), "folds"):
    for _ in progress(range(2), "calibrate"):
        pass
"""


@pytest.fixture(scope="module")
def messages() -> list[dict]:
    """What the kernel has the notebook show, in order."""
    manager, client = start_new_kernel(cwd=str(ROOT))
    shown = []
    client.execute_interactive(CELL, timeout=60, output_hook=shown.append)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return [message for message in shown if message["msg_type"] not in {"status", "execute_input"}]


def test_shows_what_is_going_on(messages):
    texts = [message["content"]["data"].get("text/plain", "") for message in messages]
    assert any(text.startswith("folds:   0%") and "0/3" in text for text in texts)
    assert any(text.startswith("calibrate:") for text in texts)


def test_uses_one_place_and_leaves_it_empty(messages):
    kinds = [message["msg_type"] for message in messages]
    assert kinds.count("display_data") == 1 and set(kinds) == {"display_data", "update_display_data"}
    assert messages[-1]["content"]["data"] == {}


def test_is_a_line_on_the_console_elsewhere(capsys):
    assert list(progress("abc", "letters")) == ["a", "b", "c"]
    assert "letters: " in capsys.readouterr().err
