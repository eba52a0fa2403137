"""One function for many items: one after the other, side by side in threads, or on the workers of a cluster.

`utils.predict` needs it where little is installed: tqdm, threadpoolctl and Dask are imported where they are used.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils import config, files

if TYPE_CHECKING:
    from distributed import Client
    from tqdm import tqdm

ONE = {"blas": 1, "torch": 1}  # threads of NumPy's sums and of torch's
_client: Client | None = None  # of the cluster in use
_one_at_a_time = threading.Lock()  # the seed and the number of threads belong to a process


def use_cluster(address: str) -> None:
    """Let `run` use the workers of a Dask scheduler, of one that is started here ("local"), or, with "", none."""
    global _client
    if _client:
        _client.close()
        _client = None
    if address:
        try:
            from utils import cluster
        except ImportError:
            sentence = f"CLUSTER {address!r} needs Dask on all machines: pip install distributed"
            raise config.InputError(sentence) from None
        _client = cluster.connect(address)


def run(function: Callable, items: Iterable, name: str, threads: int = 1) -> Iterator:
    """Apply a function to items, here in so many threads or on the cluster; → results in the items' order, with a bar.

    Sums depend on the number of threads that compute them: one where items are computed side by side, and otherwise all
    of this process, in workers, too. These get the function with all that it refers to, and keep what it changes.
    """
    items = list(items)
    if _client:
        from utils import cluster

        work = partial(_on_worker, function, ONE if threads > 1 else _threads())
        results = cluster.compute(_client, work, items, name)
    elif threads > 1:
        results = _in_threads(function, items, threads)
    else:
        results = map(function, items)
    return progress(results, name, len(items))


def progress(items: Iterable, name: str, total: int | None = None) -> tqdm:
    """Go through `items` and show on one line how far it is, which disappears at the end.

    tqdm's own bar for notebooks is a widget, which is an error message once a saved notebook is opened again.
    """
    from tqdm import tqdm

    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if config.on_worker or not hasattr(shell, "kernel"):
        return tqdm(items, name, total, leave=False, disable=config.on_worker)
    return tqdm(items, name, total, leave=False, file=_line(shell.execution_count), ascii=False, ncols=80, position=0)


class _Line:
    """A file that shows what was last written to it as an output of the cell, which a blank empties again."""

    handle = None

    def write(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text.strip()} if text.strip() else {}
        if self.handle:
            self.handle.update(shown, raw=True)
        elif shown:
            self.handle = display(shown, raw=True, display_id=True)

    def flush(self) -> None:
        pass


@lru_cache(1)
def _line(execution_count: int) -> _Line:
    """Give all bars of one execution the same line: even an empty output takes space."""
    return _Line()


def _in_threads(function: Callable, items: list, threads: int) -> Iterator:
    """Compute each item with one thread; when interrupted, finish those that have begun and start no others."""
    pool = ThreadPoolExecutor(threads)
    try:
        with _limited(ONE):  # around all: a limit that one thread lifts is lifted for the others
            yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _on_worker(function: Callable, threads: dict[str, int], items: list) -> list:
    """Compute items in a worker, alone, with the threads that there are where they come from."""
    config.on_worker = True
    with _one_at_a_time, _limited(threads):
        return [function(item) for item in items]


@contextmanager
def _limited(threads: dict[str, int]) -> Iterator[None]:
    """Compute with these numbers of threads: `blas`, and `torch` where it is imported."""
    from threadpoolctl import threadpool_limits

    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(threads["blas"]))
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads["torch"])
        yield


def _threads() -> dict[str, int]:
    """Count the threads of this process, as in ONE."""
    from threadpoolctl import threadpool_info

    counts = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    torch = sys.modules.get("torch")  # what does not import it computes nothing with it
    return {"blas": max(counts, default=1), "torch": torch.get_num_threads() if torch else 1}


def check_copy(path: Path, expected: int | str) -> None:
    """Raise InputError where a worker sees another file, by size or sha256, than the machine that sent it there."""
    if not config.on_worker:
        return
    found = files.file_size(path) if isinstance(expected, int) else files.sha256(path)
    state = "another file" if path.exists() else "missing"
    advice = "each worker must see the data under the same path as the machine that started the run"
    config.require(found == expected, f"{path} is {state} on {platform.node()}: {advice}")
