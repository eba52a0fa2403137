"""The Stop button, pressed for real: the kernel is interrupted in the middle of training."""

import time

import nbformat
import pytest
from conftest import fill_folder
from jupyter_client.manager import start_new_kernel

from utils.checkpoint import load_checkpoint
from utils.images import scan_folder
from utils.split import save_index, split_index

EPOCHS = 15


class Kernel:
    """A notebook's kernel that runs the cells of train.ipynb one by one."""

    def __init__(self, project, **settings):
        cells = nbformat.read(project / "train.ipynb", as_version=4).cells
        cells = [cell for cell in cells if cell.cell_type == "code"]
        tagged = {tag: place for place, cell in enumerate(cells) for tag in cell.metadata.get("tags", [])}
        self.cells = [cell.source for cell in cells]
        self.cells[tagged["parameters"]] += "\n" + "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        self.training, self.takeaways = tagged["training"], tagged["takeaways"]
        self.manager, self.client = start_new_kernel(cwd=str(project))

    def run(self, *sources: str) -> None:
        for source in sources:
            reply = self.client.execute_interactive(source, timeout=120, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", f"{source}\n{reply['content']}"

    def evaluate(self, expression: str) -> str:
        reply = self.client.execute_interactive("", user_expressions={"it": expression}, timeout=60)
        return reply["content"]["user_expressions"]["it"]["data"]["text/plain"]

    def press_stop(self, after_file) -> dict:
        request = self.client.execute(self.cells[self.training])
        deadline = time.monotonic() + 120
        while not after_file.exists():
            assert time.monotonic() < deadline, f"{after_file.name} was never written"
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
    return {
        "DATA": str(photos),
        "NAME": "stopped",
        "ARCH": "conv_net",
        "FINE_TUNE_EPOCHS": EPOCHS,
        "FOLDS": 3,
        "REPEATS": 1,
    }


def test_stop_keeps_the_best_epoch_and_the_next_cells_work(project, settings):
    best = project / "checkpoints" / "stopped" / "fine_tuned_conv_net.pth"
    kernel = Kernel(project, **settings)
    try:
        kernel.run(*kernel.cells[: kernel.training])
        assert kernel.press_stop(after_file=best)["status"] == "ok"
        reached = int(kernel.evaluate("len(record.history)"))
        assert 1 <= reached <= EPOCHS, "it was stopped too late to show anything"
        # a fold would train for all epochs again; what is asked here is whether the cells work
        kernel.run("epochs = 1", *kernel.cells[kernel.training + 1 : kernel.takeaways + 1])
    finally:
        kernel.close()
    assert load_checkpoint(best)["metrics"]["epoch"] < reached
