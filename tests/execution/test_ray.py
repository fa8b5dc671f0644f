"""ray: the same bits as the local executor, whatever becomes of workers and nodes; nothing is left running."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import call
from helpers.faulty_disk import quick_folder
from helpers.small_studies import carry_out, contents, facts, leftovers, same_table, small_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution import ray as executor
from supermask.execution.coordinator import MAX_WORKER_CRASHES, Assignment, Coordinator
from supermask.execution.remote import SESSIONS_DIR, remote_session
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
    # Ray's own: files and sockets of the processes that it starts.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

THREE_CHAINS = {"criterion": ["large_final", "random", "movement"]}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a user's modules in it; no Ray process outlives it."""
    token = secrets.token_hex(8)
    monkeypatch.setenv("SUPERMASK_TEST_TOKEN", token)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.chdir(path)
        yield path
    # Here, where its warnings are not heard, and not at the end of all tests.
    gc.collect()
    assert gone_within(10.0, token), processes_with(token)


def processes_with(token: str) -> list[str]:
    """Command lines of the living processes, this one aside, that were started with the token in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue
    return [command for command in found if command]


def gone_within(seconds: float, token: str) -> bool:
    end = time.monotonic() + seconds
    while processes_with(token) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes_with(token)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.results: list[TaskResult] = []

    def __call__(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        self.results.append(result)

    def ids(self) -> list[str]:
        return [result.run_id for result in self.results]


def criterion(folder: Path, body: str) -> str:
    """A user's own criterion: these statements, then the score of `large_final`."""
    name = f"ray_criterion_{secrets.token_hex(4)}"
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def nodes(*cores: int, **head: Any) -> Iterator[Any]:
    """A cluster of nodes with so many cores; the first is the head."""
    os.environ.update({name: os.environ.get(name, value) for name, value in executor.RAY_QUIET_ENV.items()})
    from ray.cluster_utils import Cluster

    small = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], **small, **head})
    try:
        cluster.others = [cluster.add_node(num_cpus=n, object_store_memory=80_000_000) for n in cores[1:]]
        yield cluster
    finally:
        cluster.shutdown()


def on_ray(address: str, plan: Plan, site: WorkerConfig, heard: Heard | None = None, workers: int = 2) -> Scheduler:
    with executor.ray_session(address, workers):
        return executor.run_plan(plan, site, workers, heard or Heard(), growing=address != "local")


def same_as_here(plan: Plan, store: Path, **site: Any) -> None:
    """Bit for bit what one worker in this process makes; and nothing is left lying about."""
    here = store.with_name(f"{store.name}-here")
    carry_out(plan, here, **site)
    assert contents(store) == contents(here)
    assert facts(store, plan) == facts(here, plan)
    assert not leftovers(store)
    assert not [*(store / SESSIONS_DIR).iterdir()]


# ------------------------------------------------------------------------------------------------------- several nodes


@pytest.mark.parametrize("engine", ["reference", "sparse"])
def test_a_node_killed_in_the_middle_changes_no_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Killed when all three cores are in the middle of a run; two of them were the node's."""
    died: list[bool] = []
    before = Coordinator._count_crash

    def counted(self: Coordinator, portion: Assignment, node: bool) -> None:
        died.append(node)
        before(self, portion, node)

    monkeypatch.setattr(Coordinator, "_count_crash", counted)
    body = """
    pathlib.Path(f'busy-{os.getpid()}').touch()
    while not pathlib.Path('killed').exists():
        time.sleep(0.01)
"""
    treatments = [{"criterion": criterion(folder, body)} for _ in range(3)]
    plan = small_plan(*treatments, seeds=2, levels=2)
    heard = Heard()
    with nodes(1, 2) as cluster:

        def kill() -> None:
            wait_for(lambda: len([*folder.glob("busy-*")]) >= 3)
            cluster.remove_node(cluster.others[0], allow_graceful=False)
            pids = [path.name.partition("-")[2] for path in folder.glob("busy-*")]
            wait_for(lambda: sum(not Path("/proc", pid).exists() for pid in pids) == 2)
            (folder / "killed").touch()

        thread = threading.Thread(target=kill)
        thread.start()
        schedule = on_ray(cluster.address, plan, WorkerConfig(folder / "store", engine=engine), heard)
        thread.join()
        assert {*schedule.status.values()} == {"finished"}
        assert sorted(heard.ids()) == sorted(plan.runs)  # none twice
        assert died == [True, True]
        again = Heard()
        on_ray(cluster.address, plan, WorkerConfig(folder / "store", engine=engine), again)
        assert not again.results
    same_as_here(plan, folder / "store", engine=engine)


def test_nodes_make_the_same_store_as_this_process(folder: Path) -> None:
    """With every engine; and through the port for clients, where this process is on no node."""
    plan = small_plan(THREE_CHAINS, {"name": "late", "rewind_to": 5, "criterion": "movement"}, seeds=2, levels=2)
    with nodes(1, 1, ray_client_server_port=(port := free_port())) as cluster:
        schedule = on_ray(cluster.address, plan, WorkerConfig(folder / "reference"))
        assert schedule.status == dict.fromkeys(plan.runs, "finished")
        sparse = WorkerConfig(folder / "sparse", engine="sparse")
        on_ray(f"ray://127.0.0.1:{port}", plan, sparse)
        heard = Heard()
        on_ray(cluster.address, plan, WorkerConfig(folder / "stacked", engine="stacked", stack=4), heard)
    assert sorted(heard.ids()) == sorted(plan.runs)  # none twice
    same_table(plan, folder / "stacked", folder / "reference")
    same_as_here(plan, folder / "reference")
    same_as_here(plan, folder / "sparse", engine="sparse")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --------------------------------------------------------------------------------------------------- a Ray of our own


def test_a_worker_that_dies_is_replaced_and_one_that_always_does_is_named(folder: Path) -> None:
    once = """
    if not pathlib.Path('killed').exists():
        pathlib.Path('killed').touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""
    always = """
    with open('deaths', 'a') as file:
        file.write('x')
    os.kill(os.getpid(), signal.SIGKILL)
"""
    good = small_plan({"criterion": criterion(folder, once)}, levels=1)
    bad = small_plan({"criterion": criterion(folder, always)}, levels=1)
    broken = small_plan({"criterion": criterion(folder, "    raise KeyError('oops')")}, levels=1)
    with executor.ray_session("local", 1):
        schedule = executor.run_plan(good, WorkerConfig(folder / "store"), 1, Heard())
        assert {*schedule.status.values()} == {"finished"}
        with pytest.raises(
            SystemFailure, match=f"died {MAX_WORKER_CRASHES} times while run {[*bad.runs][1]} .seed 0, level 1."
        ):
            executor.run_plan(bad, WorkerConfig(folder / "store"), 1, Heard())
        with pytest.raises(UserError, match="no node of this Ray cluster has a GPU"):
            executor.run_plan(bad, WorkerConfig(folder / "store", device="cuda"), 1, Heard())
        with pytest.raises(UserError, match="KeyError: 'oops'") as error:
            executor.run_plan(broken, WorkerConfig(folder / "store"), 1, Heard())
        assert "Traceback" not in str(error.value)
    assert (folder / "deaths").read_text() == "x" * MAX_WORKER_CRASHES
    same_as_here(good, folder / "store")


STUDY = """
network: fc-20
seeds: 2
train: {epochs: 150, evaluate_every: 10}
prune: {levels: 1}
treatments: [{criterion: large_final}]
"""


def test_ctrl_c_stops_the_command_and_it_goes_on_elsewhere(folder: Path) -> None:
    """The dense run was finished; the next one, of some seconds, is in the middle."""
    (folder / "study.yaml").write_text(STUDY)
    words = ["run", "study.yaml", "train.epochs=400", "seeds=1", "--store", "store", "--engine", "reference"]
    command = [sys.executable, "-m", "supermask", *words, "--cluster", "local", "--workers", "2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, start_new_session=True, stdout=pipe, stderr=pipe)
    try:
        wait_for(lambda: Store(folder / "store").run_ids())
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 8.0
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, out + err
    assert "the same command resumes" in err and "Traceback" not in out + err
    kept = Store(folder / "store").run_ids()
    assert len(kept) == 1
    assert [*(folder / "store" / "checkpoints").iterdir()]
    plan = make_plan(load_study(folder / "study.yaml", ["train.epochs=400", "seeds=1"]))
    assert sorted(carry_out(plan, folder / "store").trained) == sorted(plan.runs.keys() - kept)
    same_as_here(plan, folder / "store")


# --------------------------------------------------------------------------------------- a cluster that comes and goes


def test_where_all_nodes_are_gone_one_task_waits_for_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stacks none waits otherwise: then nothing would ever be given to a cluster that starts its nodes on demand."""
    there = {"GPU": 1.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.0)
    with remote_session(WorkerConfig(folder / "store")) as order:
        tasks = executor.RayPool(order, WorkerConfig(folder / "store", device="cuda", stack=None), None)
        assert tasks.capacity() == 2  # a GPU for two stacks
        there.clear()
        assert tasks.capacity() == 1


def test_a_task_that_was_stopped_and_nobody_asked_for_it_is_given_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared file system that has a bad moment may look like an order withdrawn."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.get", lambda _: None)
    with remote_session(WorkerConfig(folder / "store")) as order:
        assert not executor.RayPool(order, WorkerConfig(folder / "store"), 1)._answer(object())


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(folder: Path, cluster: str) -> str:
    """What the command says: one message, exit status 2, within seconds."""
    (folder / "study.yaml").write_text(STUDY)
    began = time.monotonic()
    status, out, err = call("run", "study.yaml", "--store", "store", "--cluster", cluster)
    assert (status, out) == (2, ""), err
    assert err.startswith("supermask: ") and err.count("\n") == 1
    assert time.monotonic() - began < 15
    return err


@contextmanager
def listening() -> Iterator[int]:
    """A port behind which is something that says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


def test_ctrl_c_ends_a_command_that_ray_never_answers(folder: Path) -> None:
    """Its own waiting does not let Python hear of it."""
    (folder / "study.yaml").write_text(STUDY)
    program = """
import ctypes, sys, ray
from supermask.cli import main
def never(**_):
    print("waiting", flush=True)
    ctypes.CDLL(None).select(0, None, None, None, ctypes.byref((ctypes.c_long * 2)(60, 0)))
    ctypes.CDLL(None).select(0, None, None, None, ctypes.byref((ctypes.c_long * 2)(60, 0)))
ray.init = never
sys.argv = ["supermask", "run", "study.yaml", "--store", "store", "--cluster", "auto"]
main()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()
    assert not (folder / "store").exists()


def test_where_no_ray_runs_auto_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may have one that runs: what `ray.init` raises is raised here in its place."""

    def none_there(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", none_there)
    assert "no Ray runs on this machine" in refused(folder, "auto")


def test_what_does_not_answer_is_said_within_seconds(folder: Path) -> None:
    with listening() as port:
        assert f"no Ray answers at 'ray://127.0.0.1:{port}'" in refused(folder, f"ray://127.0.0.1:{port}")
    assert f"no Ray answers at '127.0.0.1:{port}'" in refused(folder, f"127.0.0.1:{port}")
    assert "is no address of a Ray cluster" in refused(folder, "ray://nonsense")
    assert "is no address of a Ray cluster" in refused(folder, "host:\x1b[31mport")


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'supermask[ray]'" in refused(folder, "local")
