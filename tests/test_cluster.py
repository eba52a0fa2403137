"""The same work on a cluster: a scheduler and two workers, started by hand in folders of their own."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, fill_folder
from nets import all_blocks
from test_folds import Folds
from test_processes import listen_to_signals
from test_training import DETAILS, notebook_training

import run
from utils import checkpoint, cluster, parallel
from utils.config import InputError
from utils.cross_validation import cross_validate, plan_folds
from utils.files import sha256
from utils.images import read_pictures, scan_folder
from utils.parallel import use_cluster

WORKER = ["dask_worker", "--nthreads", "1", "--no-dashboard"]


@contextmanager
def started(folder: Path, *words: str, **environment: str) -> Iterator[psutil.Process]:
    """Run one of Dask's programs in a folder, as a user would, with nothing of this project on its path."""
    folder.mkdir(exist_ok=True)
    program, *arguments = words
    with (folder / f"{program}.log").open("a") as log:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments]
        process = psutil.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        for each in [process, *process.children(recursive=True)]:
            each.kill()
        process.wait()


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start a scheduler; → its address, and its process."""
    with started(folder, "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard") as process:
        while not (found := re.search(r"Scheduler at: +(\S+)", (folder / "dask_scheduler.log").read_text())):
            time.sleep(0.05)
        yield found[1], process


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    with (
        scheduler(folder / "head") as (head, _),
        started(folder / "one", *WORKER, head),
        started(folder / "two", *WORKER, head),
    ):
        yield head


@pytest.fixture
def on_cluster(address) -> Iterator[None]:
    use_cluster(address)
    yield
    use_cluster("")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = fill_folder(tmp_path_factory.mktemp("내 문서") / "사진", {"apple": 18, "tomato": 12})
    (folder / "apple" / "broken.jpg").write_bytes(b"")
    index, _ = scan_folder(folder)
    return folder, index.assign(group=[f"{row['class']}{number // 3}" for number, row in index.iterrows()])


def test_scan_pictures_features_and_folds_are_the_same_bytes_and_a_worker_that_dies_changes_nothing(
    photos, on_cluster, tmp_path
):
    folder, index = photos

    def everything(name: str) -> list:
        names = notebook_training(photos, tmp_path / name, epochs=1)
        train_as_shown = names["fit"]

        def fit(train, valid):
            died = tmp_path / f"{name} died"
            if name == "cluster" and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            return train_as_shown(train, valid)

        fold_of = plan_folds(index, folds=3, repeats=2)
        oof = cross_validate(index, fold_of, fit, names["table"].predict, all_blocks(2), threads=2)
        checkpoint.save_folds(tmp_path / "folds.pth", oof.networks, "body", **DETAILS)
        good, refused = scan_folder(folder)
        texts = [good.to_csv(), refused.to_csv(), str(oof.trained_on), sha256(tmp_path / "folds.pth")]
        return [*texts, read_pictures(folder, index), names["table"].features, oof.logits, oof.labels]

    away = everything("cluster")
    assert (tmp_path / "cluster died").exists()
    use_cluster("")
    here = everything("here")
    assert len(here) == len(away)
    assert all(np.array_equal(one, other) for one, other in zip(here, away, strict=True))


@pytest.mark.parametrize("only_head", [True, False])
def test_int8_out_of_fold_is_the_same(on_cluster, tmp_path, only_head):
    folds = Folds(tmp_path, only_head)
    networks = folds.networks if only_head else folds.networks[:1]  # of whole ones, each is exported
    away = folds.answer(networks=networks)
    use_cluster("")
    here = folds.answer(networks=networks)
    assert all(np.array_equal(here[name], away[name], equal_nan=True) for name in ("onnx", "int8"))


def test_a_file_that_a_worker_sees_otherwise_stops_the_run_by_name(photos, on_cluster, tmp_path):
    folder = fill_folder(tmp_path / "photos", {"apple": 3, "tomato": 3})
    index, _ = scan_folder(folder)
    (folder / "apple" / "001.jpg").write_bytes((folder / "tomato" / "001.jpg").read_bytes())
    with pytest.raises(InputError, match=r"apple/001.jpg is another file on .*: each worker .* the same path"):
        read_pictures(folder, index)
    (folder / "apple" / "001.jpg").unlink()
    with pytest.raises(InputError, match=r"apple/001.jpg is missing on .*: each worker .* the same path"):
        read_pictures(folder, index)


def test_a_task_that_kills_every_worker_ends_in_a_sentence(on_cluster, tmp_path):
    def die(number: int) -> None:
        (tmp_path / str(time.time_ns())).touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(InputError, match="folds: a worker died 3 times over the same task, most likely .* memory"):
        list(parallel.run(die, [0], "folds"))
    assert len(list(tmp_path.iterdir())) == 3
    assert list(parallel.run(abs, range(-3, 0), "again")) == [3, 2, 1], "the cluster goes on"
    parallel._client.wait_for_workers(2, timeout=60)  # so that tests to come find both


def test_an_error_in_a_task_is_that_of_the_task(on_cluster):
    with pytest.raises(ZeroDivisionError):
        list(parallel.run((1).__truediv__, [1, 0], "divide"))


def test_the_bar_counts_items(on_cluster, capsys):
    assert list(parallel.run(abs, range(-2000, 0), "numbers")) == list(range(2000, 0, -1))
    assert "numbers: " in capsys.readouterr().err


def test_other_versions_are_named(tmp_path, monkeypatch):
    other = tmp_path / "path" / "pillow-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.0\n")
    with scheduler(tmp_path / "head") as (head, _):
        monkeypatch.setattr(cluster, "FIRST_WORKER", 0.2)
        with pytest.raises(InputError, match=f"the scheduler at {head} has no worker: start some by `dask worker"):
            use_cluster(head)
        monkeypatch.undo()
        sentence = r"tcp://\S+ has pillow 1.0, this machine 1\d\.\S+. Install the same everywhere"
        worker = started(tmp_path / "one", *WORKER, "--no-nanny", head, PYTHONPATH=str(other.parent))
        with worker, pytest.raises(InputError, match=sentence):
            use_cluster(head)
    assert list(parallel.run(abs, [-1], "numbers")) == [1], "without a cluster, this process does it"


def test_the_readme_names_the_version_that_run_py_installs():
    (requirement,) = run.dependency_group("cluster")
    assert requirement in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert requirement in run.dependency_group("test")


def test_workers_on_another_kind_of_cpu_are_named(address, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "cpu_info", lambda: {"name": "another"})
    use_cluster(address)
    use_cluster("")
    assert re.search("Another kind of machine: tcp://.*, tcp://.* INT8", capsys.readouterr().out)


def test_a_scheduler_that_goes_away_ends_in_a_sentence(tmp_path):
    with scheduler(tmp_path / "head") as (head, process), started(tmp_path / "one", *WORKER, "--no-nanny", head):
        use_cluster(head)
        answers = parallel.run(time.sleep, [0.01] * 5 + [30], "features")
        next(iter(answers))
        process.kill()
        with pytest.raises(InputError, match="features: the cluster's scheduler is gone. Start it and its workers"):
            list(answers)
    use_cluster("")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "head", "tcp://no.such.host:8786"])
def test_a_wrong_address_ends_in_a_sentence(monkeypatch, address):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with pytest.raises(InputError, match=f"CLUSTER '{address}': no Dask scheduler answers there"):
        use_cluster(address)
    assert list(parallel.run(abs, [-1], "numbers")) == [1], "without a cluster, this process does it"


@pytest.mark.parametrize(("greeting", "words"), [(b"", "no greeting within 1 s"), (b"HTTP/1.1 400", "another kind")])
def test_who_is_no_scheduler_ends_in_a_sentence(monkeypatch, greeting, words):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def greet() -> None:
            with server.accept()[0] as caller:
                caller.sendall(greeting)
                while caller.recv(1000):
                    pass

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(InputError, match=rf"CLUSTER '{address}': no Dask scheduler answers there \({words}"):
            use_cluster(address)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_leaves_no_worker_behind(project):
    command = [sys.executable, str(project / "run.py"), "--no-venv", "--cluster", "local", "--name", "stopped_cluster"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "preexec_fn": listen_to_signals}
    process = psutil.Popen(command, **options)
    everyone = []
    while not any("spawn_main" in " ".join(child.cmdline()) for child in everyone):  # so a worker is called
        assert process.poll() is None
        time.sleep(0.1)
        everyone = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert not alive


def test_a_function_may_keep_what_cannot_travel(on_cluster):
    """Such as an ONNX Runtime session: workers hand the function on as it was sent."""
    kept = []

    def work(number: int) -> int:
        kept.append(threading.Lock())
        return number

    assert list(parallel.run(work, range(2000), "numbers")) == list(range(2000))
