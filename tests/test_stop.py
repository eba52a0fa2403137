"""The Stop button, pressed for real: the kernel is interrupted in the middle of training."""

import time

import nbformat
import pytest
from conftest import fill_folder
from jupyter_client.manager import start_new_kernel

from utils.images import scan_folder
from utils.split import save_index, split_index

EPOCHS = 25


class Kernel:
    """A notebook's kernel that runs the cells of train.ipynb one by one."""

    def __init__(self, project, **settings):
        cells = nbformat.read(project / "train.ipynb", as_version=4).cells
        self.cells = [cell.source for cell in cells if cell.cell_type == "code"]
        place = next(i for i, source in enumerate(self.cells) if source.startswith("DATA ="))
        self.cells[place] += "\n" + "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        self.loop = next(i for i, source in enumerate(self.cells) if source.startswith("try:"))
        self.manager, self.client = start_new_kernel(cwd=str(project))

    def run(self, *sources: str) -> None:
        for source in sources:
            reply = self.client.execute_interactive(source, timeout=120, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", f"{source}\n{reply['content']}"

    def evaluate(self, expression: str) -> str:
        reply = self.client.execute_interactive("", user_expressions={"it": expression}, timeout=60)
        return reply["content"]["user_expressions"]["it"]["data"]["text/plain"]

    def press_stop(self, after_file) -> dict:
        request = self.client.execute(self.cells[self.loop])
        while not after_file.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        self.manager.interrupt_kernel()
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"]

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def settings(project, tmp_path_factory) -> dict:
    photos = fill_folder(tmp_path_factory.mktemp("photos"), {"a": 30, "b": 30, "c": 12})
    index, refused = scan_folder(photos)
    index["group"] = index["path"]
    index["split"] = split_index(index)
    (project / "checkpoints" / "stopped").mkdir()
    save_index(project / "checkpoints" / "stopped" / "split.csv", index, refused)
    return {"DATA": str(photos), "NAME": "stopped", "FINE_TUNE_EPOCHS": EPOCHS, "FOLDS": 3, "REPEATS": 1}


def test_stop_keeps_what_was_reached_and_the_next_run_goes_on(project, settings):
    last = project / "checkpoints" / "stopped" / "last_conv_net.pth"
    kernel = Kernel(project, **settings)
    try:
        kernel.run(*kernel.cells[: kernel.loop])
        assert kernel.press_stop(after_file=last)["status"] == "ok"
        reached = int(kernel.evaluate("len(history)"))
        assert 1 <= reached <= EPOCHS, "it was stopped too late to show anything"
        # a fold would train for all epochs again; what is asked here is whether the cells work
        kernel.run("epochs = 1", *kernel.cells[kernel.loop + 1 :])
        before = kernel.evaluate("history['train_loss'].tolist()[1:]")
    finally:
        kernel.close()

    kernel = Kernel(project, **settings, RESUME=True)
    try:
        kernel.run(*kernel.cells[: kernel.loop])
        saved = int(kernel.evaluate("len(history)"))
        assert reached - 1 <= saved <= reached
        kernel.run(kernel.cells[kernel.loop])
        assert int(kernel.evaluate("len(history)")) == EPOCHS + 1
        assert kernel.evaluate(f"history['train_loss'].tolist()[1:{saved}]")[:-1] in before
    finally:
        kernel.close()
