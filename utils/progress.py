"""Go through many items, here or on a cluster, and show how far it is by a bar that leaves nothing behind."""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from utils import files
from utils.config import ROOT, THREADS, InputError, cpu_info, listing, require

if TYPE_CHECKING:
    from distributed import Client, Future

TASK = 256  # items, at most: the scheduler takes some ms for each task
TASKS = 16  # for each worker, at least: a slow one then delays little
AHEAD = 3  # tasks that a worker has or waits for
REPEATS = 2  # of a task whose worker died
PATIENCE = 300  # seconds without any worker, in the middle
CONNECT, FIRST_WORKER = 10, 30  # seconds to wait for the scheduler, for a worker
RUNNING = ["python", "dask", "distributed", "cloudpickle"]  # one version of these everywhere, and of those in workers
COMPUTING = ["numpy", "scipy", "scikit-learn", "pandas", "pillow", "pillow-heif", "torch", "torchvision", "timm"]
COMPUTING += ["onnx", "onnxruntime"]
ONE = {"blas": 1, "torch": 1}  # threads of NumPy's sums and of torch's
FORGET = "import sys\n[sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] == 'utils']\n"

_client: Client | None = None
_one_at_a_time = threading.Lock()  # the seed and the number of threads belong to a process


def use_cluster(address: str) -> None:
    """Let `spread` use the workers of a Dask scheduler, of one that is started here ("local"), or, with "", none.

    Workers get this project's code from here; Python and packages are theirs, and must be of the same version. Raises
    InputError when there is no scheduler, no worker, or another version.
    """
    global _client
    if _client:
        _client.close()
    _client = None
    if not address:
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError(f"CLUSTER {address!r} needs Dask: pip install distributed, the same on all machines") from None
    try:
        if address == "local":
            client = Client(n_workers=THREADS, threads_per_worker=1, dashboard_address=None)
        else:
            _greet(address)
            client = Client(address, timeout=CONNECT)
    except (OSError, ValueError, TypeError) as error:  # the last where a tls:// address finds no certificates
        raise InputError(
            f"CLUSTER {address!r}: no Dask scheduler answers there ({error}). Start `dask scheduler`, which prints its "
            'address, such as "tcp://head:8786"; "local" needs none, and "" works without'
        ) from None
    try:
        _ready_workers(client)
    except BaseException:
        client.close()
        raise
    _client = client


def _greet(address: str) -> None:
    """Connect once: Dask's own client waits for ever where somebody takes its call and says nothing. Raises OSError."""
    from distributed import Security
    from distributed.comm import connect
    from distributed.utils import LoopRunner

    async def greet() -> None:
        async with asyncio.timeout(CONNECT + 1):  # so that whoever cannot be reached is named by Dask
            certificates = Security().get_connection_args("client")  # those of Dask's configuration, as for its client
            (await connect(address, timeout=CONNECT, **certificates)).abort()

    try:
        LoopRunner().run_sync(greet)
    except TimeoutError:
        raise OSError(f"no greeting within {CONNECT} s") from None
    except MemoryError:  # the first letters, taken for a length
        raise OSError("another kind of server does") from None


def spread(function: Callable, items: Iterable, name: str, threads: int = 1) -> Iterator:
    """Apply a function to items, here in so many threads or on the cluster; → results in the items' order, with a bar.

    Sums depend on the number of threads that compute them: one where items are computed side by side, and otherwise all
    of this process, in workers, too. These get the function once, with all that it refers to. What the function writes
    into memory stays where it ran.
    """
    items = list(items)
    if _client:
        results = _on_cluster(_client, partial(_work, function, _threads() if threads == 1 else ONE), items, name)
    elif threads > 1:
        results = _in_threads(function, items, threads)
    else:
        results = map(function, items)
    return progress(results, name, len(items))


def progress(items: Iterable, name: str, total: int | None = None) -> tqdm:
    """Go through `items` and show on one line how far it is; the line disappears at the end.

    tqdm's own bar for notebooks is a widget: whoever saves the notebook and opens it again finds "Error displaying
    widget" in its place.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if files.on_worker or not hasattr(shell, "kernel"):
        return tqdm(items, name, total, leave=False, disable=files.on_worker)
    return tqdm(items, name, total, leave=False, file=_line(shell.execution_count), ascii=False, ncols=80, position=0)


def _in_threads(function: Callable, items: list, threads: int) -> Iterator:
    """Compute with one thread an item; whoever stops waits for the items at hand, and for no others."""
    pool = ThreadPoolExecutor(threads)
    try:
        with _limited(ONE):  # around all: a limit that one thread lifts is lifted for the others
            yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _on_cluster(client: Client, work: Callable, items: list, name: str) -> Iterator:
    """Send tasks of some items each, a few ahead of the one whose results are next."""
    import cloudpickle
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    waiting = deque()
    try:
        workers = max(1, _check_versions(client))  # none, for a moment, where one has died and starts again
        size = max(1, min(TASK, len(items) // (TASKS * workers)))
        starts = deque(range(0, len(items), size))
        # bytes, as the scheduler has none of this code; and by a task, whose result is made again if a worker dies
        there = client.submit(cloudpickle.loads, cloudpickle.dumps(_Sent(cloudpickle.dumps(work))), pure=False)
        while starts or waiting:
            while starts and len(waiting) < AHEAD * workers:
                start = starts.popleft()
                sent = cloudpickle.dumps(items[start : start + size])
                waiting.append(client.submit(operator.call, there, sent, pure=False))
            yield from cloudpickle.loads(_result(client, waiting[0]))
            waiting.popleft()
    except KilledWorker:
        raise InputError(
            f"{name}: a worker died {REPEATS + 1} times over the same task, most likely because its memory ran out. "
            "Start fewer workers on a machine, or give them more memory, and run this again"
        ) from None
    except (CancelledError, CommClosedError) as error:
        sentence = f"{name}: the cluster's scheduler is gone. Start it and its workers again, and run this again"
        raise InputError(sentence) from error
    finally:
        if client.status == "running":
            client.cancel(list(waiting))


class _Sent:
    """A function as it was sent. Workers hand it on as that, since what it keeps once it ran may not travel."""

    def __init__(self, packed: bytes):
        self.packed = packed
        self.function: Callable | None = None

    def __reduce__(self) -> tuple:
        return _Sent, (self.packed,)

    def __call__(self, sent: bytes) -> bytes:
        import cloudpickle

        self.function = self.function or cloudpickle.loads(self.packed)
        return self.function(sent)


def _result(client: Client, future: Future) -> bytes:
    """Wait for a task, as long as somebody may do it; → what it returns."""
    from distributed import wait

    while not future.done():
        try:
            wait(future, timeout=PATIENCE)
        except TimeoutError:
            require(client.scheduler_info(n_workers=-1)["workers"], "the cluster has no worker left: start some")
    return future.result()


def _work(function: Callable, threads: dict[str, int], sent: bytes) -> bytes:
    """Do a task in a worker, alone, with the threads that there are where it comes from; items and results in bytes.

    Dask's own way would lose how a tensor lies in memory, and with it a file's last bits.
    """
    import cloudpickle

    with _one_at_a_time, _limited(threads):
        files.on_worker = True
        return cloudpickle.dumps([function(item) for item in cloudpickle.loads(sent)])


@contextmanager
def _limited(threads: dict[str, int]) -> Iterator[None]:
    """Compute with these numbers of threads: `blas`, and `torch` where it is imported."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(threads["blas"]):
        if torch:
            torch.set_num_threads(threads["torch"])
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def _threads() -> dict[str, int]:
    """Count the threads of this process, as in ONE."""
    counts = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    torch = sys.modules.get("torch")  # what does not import it computes nothing with it
    return {"blas": max(counts, default=1), "torch": torch.get_num_threads() if torch else 1}


def _ready_workers(client: Client) -> None:
    """Check what will compute, bring it this project's code, and name the workers of another kind."""
    from distributed.diagnostics.plugin import UploadFile

    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER)
    except TimeoutError:
        address = client.scheduler.address
        raise InputError(f"the scheduler at {address} has no worker: start some by `dask worker {address}`") from None
    _check_versions(client)
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", REPEATS))
    client.register_plugin(UploadFile(str(_pack_code())), name="utils")  # workers that come later get it, too
    here, others = _machine(), client.run(_machine)
    slower = [f"{worker} ({about['device']})" for worker, about in others.items() if about["device"] != here["device"]]
    require(not slower, f"this machine computes on {here['device']}, and {listing(slower)}: workers must do as it does")
    if other := [worker for worker, about in others.items() if about != here]:
        print(f"Another kind of CPU: {listing(other)}. Last digits, and answers of INT8 files, may differ from here.")


def _check_versions(client: Client) -> int:
    """Count the workers; stop if one, or the scheduler, has another version of something than this machine."""
    found = client.get_versions(packages=COMPUTING)
    here, wrong = found["client"]["packages"], []
    places = {"the scheduler": (found["scheduler"], RUNNING)}
    places.update({f"worker {name}": (about, RUNNING + COMPUTING) for name, about in found["workers"].items()})
    for place, (about, names) in places.items():
        for name in names:
            versions = [_short(name, packages.get(name)) for packages in (about["packages"], here)]
            if versions[0] != versions[1]:
                wrong.append(f"{place} has {name} {versions[0]}, this machine {versions[1]}")
    require(not wrong, f"{listing(wrong)}. Install the same everywhere, from requirements.txt")
    return len(found["workers"])


def _short(name: str, version: str | None) -> str:
    """Write a version as people do; of Python, the last number changes no result."""
    return ".".join(version.split(".")[:2]) if name == "python" else version or "missing"


def _pack_code() -> str:
    """Zip `utils`, behind a module that makes a worker forget what it has imported of another run's."""
    path = files.scratch_folder() / f"utils_{time.time_ns()}.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("forget_utils.py", FORGET)  # modules are imported by alphabet
        for module in sorted((ROOT / "utils").rglob("*.py")):
            file.write(module, module.relative_to(ROOT))
    return path


def _machine() -> dict:
    """Say on what a process computes."""
    from utils.model import DEVICE

    return {"device": DEVICE.type} | cpu_info()


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
