"""The Ray executor: the same bits as the local one when workers and nodes die; no process is left."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import slow_loss
from helpers.command_line import call
from helpers.executors import Recorder, criterion, wait_for
from helpers.faulty_disk import quick_folder
from helpers.harness import IS_FULL
from helpers.small_studies import contents, facts, leftovers, same_table, small_plan, train_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.engines import sparse
from supermask.execution import ray as ray_executor
from supermask.execution.coordinator import Assignment, Coordinator, ExecutionRequest
from supermask.execution.remote import SESSIONS_DIR, remote_session
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
    # Ray leaves files and sockets of its processes open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

THREE_CHAINS = {"criterion": ["large_final", "random", "movement"]}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current directory and can hold a user's modules; no Ray process outlives it."""
    token = secrets.token_hex(8)
    monkeypatch.setenv("SUPERMASK_TEST_TOKEN", token)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.chdir(path)
        yield path
    assert gone_within(30.0, token), processes_with(token)


@pytest.fixture(scope="module", autouse=True)
def collect_processes() -> Iterator[None]:
    """Collect Ray's processes while ResourceWarnings are ignored, and not at the end of the session."""
    yield
    gc.collect()


def processes_with(token: str) -> list[str]:
    """Return the command lines of other living processes that have the token in their environment."""
    commands = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                commands.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue
    return [command for command in commands if command]


def gone_within(seconds: float, token: str) -> bool:
    end = time.monotonic() + seconds
    while processes_with(token) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes_with(token)


@contextmanager
def ray_cluster(*cores: int, **head: Any) -> Iterator[Any]:
    """Start a cluster of nodes with these numbers of cores; the first is the head."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ray_executor.RAY_QUIET_ENV.items()})
    # Otherwise the server behind the client port sometimes dies when it is forked: ray-project/ray, issue 63202.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from ray.cluster_utils import Cluster

    small = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], **small, **head})
    try:
        cluster.others = [cluster.add_node(num_cpus=n, object_store_memory=80_000_000) for n in cores[1:]]
        yield cluster
    finally:
        cluster.shutdown()


def execute(
    address: str, plan: Plan, config: WorkerConfig, recorder: Recorder | None = None, workers: int = 2
) -> Scheduler:
    with ray_executor.ray_session(address, workers):
        request = ExecutionRequest(plan, config, workers, recorder or Recorder())
        return ray_executor.run_plan(request, growing=address != "local")


def assert_same_as_local(plan: Plan, store: Path, **config: Any) -> None:
    """Check that the store is bit-identical to one of a worker in this process, without leftovers."""
    local_store = store.with_name(f"{store.name}-here")
    train_plan(plan, local_store, **config)
    assert contents(store) == contents(local_store)
    assert facts(store, plan) == facts(local_store, plan)
    assert not leftovers(store)
    assert not [*(store / SESSIONS_DIR).iterdir()]


# ------------------------------------------------------------------------------------------------------- several nodes


def test_a_killed_node_changes_no_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while all three cores train; two of them are on the killed node."""
    node_losses: list[bool] = []
    count_crash = Coordinator._count_crash

    def counted(self: Coordinator, assignment: Assignment, node_lost: bool) -> None:
        node_losses.append(node_lost)
        count_crash(self, assignment, node_lost)

    monkeypatch.setattr(Coordinator, "_count_crash", counted)
    body = """
    pathlib.Path(f'busy-{os.getpid()}').touch()
    while not pathlib.Path('killed').exists():
        time.sleep(0.01)
"""
    sparse.compile_and_measure(convolutions=False)  # Otherwise each of three workers compiles.
    treatments = [{"criterion": criterion(folder, body)} for _ in range(3)]
    plan = small_plan(*treatments, seeds=2, levels=2)
    recorder = Recorder()
    with ray_cluster(1, 2) as cluster:

        def kill() -> None:
            try:
                # On a busy machine three processes import and compile for minutes.
                wait_for(lambda: len([*folder.glob("busy-*")]) >= 3, seconds=300)
                cluster.remove_node(cluster.others[0], allow_graceful=False)
                pids = [path.name.partition("-")[2] for path in folder.glob("busy-*")]
                wait_for(lambda: sum(not Path("/proc", pid).exists() for pid in pids) == 2)
            finally:
                (folder / "killed").touch()

        thread = threading.Thread(target=kill)
        thread.start()
        scheduler = execute(cluster.address, plan, WorkerConfig(folder / "store", engine="sparse"), recorder)
        thread.join()
        assert {*scheduler.status.values()} == {"finished"}
        assert sorted(recorder.ids()) == sorted(plan.runs)  # None twice.
        assert node_losses == [True, True]
        if IS_FULL:
            second = Recorder()
            execute(cluster.address, plan, WorkerConfig(folder / "store", engine="sparse"), second)
            assert not second.results
    assert_same_as_local(plan, folder / "store", engine="sparse")


def test_a_cluster_makes_the_same_store_as_this_process(folder: Path) -> None:
    """In stacks, then run by run through the client port, where this process is not part of the cluster."""
    plan = small_plan(THREE_CHAINS, {"name": "late", "rewind_to": 5, "criterion": "movement"}, seeds=2, levels=2)
    with ray_cluster(1, 1, ray_client_server_port=(port := free_port())) as cluster:
        recorder = Recorder()
        execute(cluster.address, plan, WorkerConfig(folder / "stacked", engine="stacked", stack=4), recorder)
        scheduler = execute(f"ray://127.0.0.1:{port}", plan, WorkerConfig(folder / "reference"))
        assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(recorder.ids()) == sorted(plan.runs)  # None twice.
    same_table(plan, folder / "stacked", folder / "reference")
    assert_same_as_local(plan, folder / "reference")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ------------------------------------------------------------------------------------------------ Ray on this machine


def test_a_dead_worker_is_replaced_and_a_run_that_always_kills_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.execution.coordinator.MAX_WORKER_CRASHES", 2)
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
    with ray_executor.ray_session("local", 1):
        scheduler = ray_executor.run_plan(ExecutionRequest(good, WorkerConfig(folder / "store"), 1, Recorder()))
        assert {*scheduler.status.values()} == {"finished"}
        with pytest.raises(SystemFailure, match=f"died 2 times while run {[*bad.runs][1]} .seed 0, level 1."):
            ray_executor.run_plan(ExecutionRequest(bad, WorkerConfig(folder / "store"), 1, Recorder()))
        with pytest.raises(UserError, match="no node of this Ray cluster has a GPU"):
            ray_executor.run_plan(ExecutionRequest(bad, WorkerConfig(folder / "store", device="cuda"), 1, Recorder()))
        with pytest.raises(UserError, match="KeyError: 'oops'") as error:
            ray_executor.run_plan(ExecutionRequest(broken, WorkerConfig(folder / "store"), 1, Recorder()))
        assert "Traceback" not in str(error.value)
    assert (folder / "deaths").read_text() == "xx"
    assert_same_as_local(good, folder / "store")


STUDY = f"""
network: fc-20
seeds: 1
train: {{epochs: 40, evaluate_every: 10, loss: {slow_loss.NAME}}}
prune: {{levels: 1}}
treatments: [{{criterion: large_final}}]
"""


def test_ctrl_c_stops_the_command_and_another_executor_resumes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense run has finished; the next one, which takes three seconds, is in training."""
    (folder / "study.yaml").write_text(STUDY)
    arguments = ["run", "study.yaml", "--store", "store", "--engine", "reference"]
    command = [sys.executable, "-m", "supermask", *arguments, "--cluster", "local", "--workers", "2"]
    pipe = subprocess.PIPE
    with slow_loss.slow_folder(folder, monkeypatch):
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
    plan = make_plan(load_study(folder / "study.yaml"))
    assert sorted(train_plan(plan, folder / "store").trained) == sorted(plan.runs.keys() - kept)
    assert_same_as_local(plan, folder / "store")


# ------------------------------------------------------------------------------------------- a cluster of varying size


def test_without_nodes_one_task_waits_for_the_next_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a waiting task, a cluster that starts nodes on demand would never start one."""
    resources = {"GPU": 1.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr(ray_executor, "POLL_SECONDS", 0.0)
    with remote_session(WorkerConfig(folder / "store")) as session:
        pool = ray_executor.RayPool(session, WorkerConfig(folder / "store", device="cuda", stack=None), None)
        assert pool.capacity() == 2  # One GPU takes two stacks.
        resources.clear()
        assert pool.capacity() == 1


def test_a_task_that_stopped_without_a_request_is_sent_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of a shared file system may look like a cancelled session."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.get", lambda _: None)
    with remote_session(WorkerConfig(folder / "store")) as session:
        assert not ray_executor.RayPool(session, WorkerConfig(folder / "store"), 1)._answer(object())


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(folder: Path, cluster: str) -> str:
    """Run the command and return its error: one message, exit status 2, within seconds."""
    (folder / "study.yaml").write_text(STUDY)
    began = time.monotonic()
    status, out, err = call("run", "study.yaml", "--store", "store", "--cluster", cluster)
    assert (status, out) == (2, ""), err
    assert err.startswith("supermask: ") and err.count("\n") == 1
    assert time.monotonic() - began < 15
    return err


@contextmanager
def listening() -> Iterator[int]:
    """Open a port that accepts connections and sends nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


def test_ctrl_c_ends_a_command_that_waits_for_ray_forever(folder: Path) -> None:
    """Ray waits in C code, where Python handles no signals."""
    program = """
import ctypes, sys, ray
from supermask.cli import main
def never(**_):
    print("waiting", flush=True)
    ctypes.CDLL(None).select(0, None, None, None, ctypes.byref((ctypes.c_long * 2)(60, 0)))
    ctypes.CDLL(None).select(0, None, None, None, ctypes.byref((ctypes.c_long * 2)(60, 0)))
ray.init = never
sys.argv = ["supermask", "run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", "auto"]
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


def test_auto_without_a_running_ray_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may run a Ray at the same time, so `ray.init` is replaced."""

    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", refuse)
    assert "no Ray runs on this machine" in refused(folder, "auto")


@pytest.mark.parametrize(("failures", "is_refused"), [(2, False), (3, True)])
def test_a_client_server_that_dies_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, is_refused: bool
) -> None:
    """Ray's server of a client port dies now and then when it is forked."""
    answers = [ConnectionAbortedError(f"RuntimeError: {ray_executor.CLIENT_SERVER_DIED}. See its log.")] * failures

    def init(**_: Any) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr("ray.init", init)
    if is_refused:
        with pytest.raises(UserError, match="no Ray answers at 'ray://there:10001'"):
            ray_executor._connect("ray://there:10001")
    else:
        ray_executor._connect("ray://there:10001")
    assert not answers


def test_an_address_that_does_not_answer_is_refused_within_seconds(folder: Path) -> None:
    with listening() as port:
        assert f"no Ray answers at 'ray://127.0.0.1:{port}'" in refused(folder, f"ray://127.0.0.1:{port}")
    assert f"no Ray answers at '127.0.0.1:{port}'" in refused(folder, f"127.0.0.1:{port}")
    assert "is not an address of a Ray cluster" in refused(folder, "ray://nonsense")
    assert "is not an address of a Ray cluster" in refused(folder, "host:\x1b[31mport")


def test_a_temporary_folder_with_a_long_name_is_not_used_for_sockets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[str | None] = []
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * 60)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("ray.init", lambda **_: folders.append(os.environ.get("RAY_TMPDIR")))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0})
    with ray_executor.ray_session("local", 3) as cores:
        assert (cores, folders) == (3, ["/tmp"])  # noqa: S108


def test_sockets_that_cannot_be_made_are_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /a/b")

    monkeypatch.setattr("ray.init", fail)
    assert "Ray did not start on this machine: AF_UNIX path length" in refused(folder, "local")


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'supermask[ray]'" in refused(folder, "local")
