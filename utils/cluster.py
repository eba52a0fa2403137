"""The client of a Dask cluster, whose workers get this project's code from here; imported only where one is used."""

import asyncio
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice

import cloudpickle
from distributed import CancelledError, Client, KilledWorker, Security
from distributed.comm import CommClosedError
from distributed.comm import connect as open_connection
from distributed.diagnostics.plugin import UploadFile
from distributed.scheduler import NoWorkerError
from distributed.utils import LoopRunner

from utils.config import ROOT, THREADS, InputError, cpu_info, device, listing, require
from utils.files import scratch_folder

ITEMS_PER_TASK = 256  # at most: the scheduler takes some ms for each task
TASKS_PER_WORKER = 16  # at least: a slow worker then delays little
AHEAD = 3  # tasks that a worker has or waits for
REPEATS = 2  # of a task whose worker died
CONNECT = 10  # seconds to wait for the scheduler
FIRST_WORKER = 30  # seconds to wait for a worker
PATIENCE = 300  # seconds without any worker, in the middle
RUNNING = ["python", "dask", "distributed", "cloudpickle"]  # one version of these everywhere, and of those in workers
COMPUTING = ["numpy", "scipy", "scikit-learn", "pandas", "pillow", "pillow-heif", "torch", "torchvision", "timm"]
COMPUTING += ["onnx", "onnxruntime"]


def connect(address: str) -> Client:
    """Connect to a Dask scheduler, or start one with a worker for each core here ("local").

    Raises InputError when there is no scheduler or no worker, or one with another version of Python or a package.
    """
    try:
        if address == "local":
            client = Client(n_workers=THREADS, threads_per_worker=1, dashboard_address=None)
        else:
            _greet(address)
            client = Client(address, timeout=CONNECT)
    except (OSError, ValueError, TypeError) as error:  # the last where a tls:// address finds no certificates
        raise InputError(
            f"CLUSTER {address!r}: no Dask scheduler answers there ({error}). Start `dask scheduler`, which prints "
            'its address, such as "tcp://head:8786"; "local" needs none, and "" works without'
        ) from None
    try:
        _ready_workers(client)
    except BaseException:
        client.close()
        raise
    return client


def _greet(address: str) -> None:
    """Connect once: Dask's own client waits for ever where somebody takes its call and says nothing. Raises OSError."""

    async def greet() -> None:
        async with asyncio.timeout(CONNECT + 1):  # so that Dask names whoever cannot be reached
            certificates = Security().get_connection_args("client")  # those of Dask's configuration, as for its client
            (await open_connection(address, timeout=CONNECT, **certificates)).abort()

    try:
        LoopRunner().run_sync(greet)
    except TimeoutError:
        raise OSError(f"no greeting within {CONNECT} s") from None
    except MemoryError:  # the first letters, taken for a length
        raise OSError("another kind of server does") from None


def _ready_workers(client: Client) -> None:
    """Check what will compute, bring it this project's code, and name the workers of another kind."""

    def forget_code() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "utils"]:
            del sys.modules[name]

    def set_patience(dask_scheduler) -> None:
        dask_scheduler.allowed_failures = REPEATS
        dask_scheduler.no_workers_timeout = PATIENCE

    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER)
    except TimeoutError:
        address = client.scheduler.address
        raise InputError(f"the scheduler at {address} has no worker: start some by `dask worker {address}`") from None
    _check_versions(client)
    client.run_on_scheduler(set_patience)
    client.run(forget_code)  # of a run before
    code = shutil.make_archive(str(scratch_folder() / f"utils_{time.time_ns()}"), "zip", ROOT, "utils")
    client.register_plugin(UploadFile(code), name="utils")  # workers that come later get it, too
    here = _machine()
    if other := [worker for worker, about in client.run(_machine).items() if about != here]:
        print(f"Another kind of machine: {listing(other)}. Last digits, and INT8 predictions, may differ from here.")


def _machine() -> dict:
    return {"device": device()} | cpu_info()


def _check_versions(client: Client) -> int:
    """Count the workers; stop if one, or the scheduler, has another version of something than this machine."""
    found, wrong = client.get_versions(packages=COMPUTING), []
    ours = found["client"]["packages"]
    for place, about in {"the scheduler": found["scheduler"], **found["workers"]}.items():
        theirs = about["packages"]
        for name in RUNNING if place == "the scheduler" else RUNNING + COMPUTING:
            if _short(name, theirs) != _short(name, ours):
                wrong.append(f"{place} has {name} {_short(name, theirs)}, this machine {_short(name, ours)}")
    require(not wrong, f"{listing(wrong)}. Install the same everywhere, from requirements.txt")
    return len(found["workers"])


def _short(name: str, versions: dict[str, str | None]) -> str:
    """Write a version as people do; of Python, the last number changes no result."""
    version = versions.get(name) or "missing"
    return ".".join(version.split(".")[:2]) if name == "python" else version


def compute(client: Client, function: Callable[[list], list], items: list, name: str) -> Iterator:
    """Apply a function of a list to parts of the items, on workers; → results in the items' order.

    Tasks have some items each, and a few are ahead of the one whose results are next. All travel as bytes: Dask's own
    way would lose how a tensor lies in memory, and with it a file's last bits. Raises InputError when a part kills its
    workers again and again, or there is no scheduler or no worker left.
    """

    def work(function: bytes, items: bytes) -> bytes:  # read by the scheduler, which has none of our modules
        from utils import cluster

        return cloudpickle.dumps(cluster.unpack(function)(cloudpickle.loads(items)))

    waiting = deque()
    try:
        workers = max(1, _check_versions(client))  # none, for a moment, where one has died and starts again
        size = max(1, min(ITEMS_PER_TASK, len(items) // (TASKS_PER_WORKER * workers)))
        sent = client.submit(bytes, cloudpickle.dumps(function), pure=False)  # by a task: made again if a worker dies
        parts = (cloudpickle.dumps(items[start : start + size]) for start in range(0, len(items), size))
        tasks = (client.submit(work, sent, part, pure=False) for part in parts)
        waiting.extend(islice(tasks, AHEAD * workers))
        while waiting:
            yield from cloudpickle.loads(waiting[0].result())
            waiting.popleft()
            waiting.extend(islice(tasks, 1))
    except KilledWorker:
        died = f"{name}: a worker died {REPEATS + 1} times over the same task, most likely because its memory ran out"
        raise InputError(f"{died}. Start fewer workers on a machine, or with more memory, and run this again") from None
    except NoWorkerError:
        raise InputError(f"{name}: the cluster has no worker left. Start some, and run this again") from None
    except (CancelledError, CommClosedError) as error:
        sentence = f"{name}: the cluster's scheduler is gone. Start it and its workers again, and run this again"
        raise InputError(sentence) from error
    finally:
        if client.status == "running":
            client.cancel(list(waiting))


@lru_cache(1)
def unpack(function: bytes) -> Callable[[list], list]:
    """Read a function that was sent here, once for all its tasks: what it has opened stays open."""
    return cloudpickle.loads(function)
