"""Command line: messages and exit statuses for invalid input and for failures of the machine."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.command_line import call, refused, supermask
from helpers.forgery import NEWER, make_newer
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study, write_study

from supermask.api import runs
from supermask.execution.local import StudyInterrupted


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("errors"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


# --- invalid input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pla", "mask-criteria"], "No such command 'pla'"),
        (["run", "mask-criteria", "--stor", "x"], "No such option --stor; did you mean '--store'?"),
        (["run", "mask-criteria", "--scale", "digit"], "did you mean 'digits'?"),
        (["run", "mask-criteria", "--train.lr=1e-3"], "written without dashes: train.lr=VALUE"),
        (["plan"], "Missing argument 'STUDY'"),
        (["table", "mask-criteria", "--format", "xml"], "'xml' is not one of 'csv', 'json', 'parquet'"),
        (["plan", "mask-criteria", "--workers", "0"], "Invalid value for '--workers'"),
        (["plan", "mask-criteri"], "did you mean 'mask-criteria'?"),
        (["plan", "nowhere.yaml"], "there is no such file"),
        (["plan", "mask-criteria", "seeds"], "override 'seeds': not of the form KEY=VALUE"),
        (["plan", "mask-criteria", "sead=3"], "did you mean 'seeds'?"),
        (["plan", "mask-criteria", "seeds=0"], "seeds: 0 is not a number of seeds"),
        (["plan", "mask-criteria", "scale=digit"], "did you mean 'digits'?"),
        (["plan", "mask-criteria", "dataset=mnits"], "did you mean 'mnist'?"),
        (["plan", "mask-criteria", "treatments=[{criterion: large_finl}]"], "did you mean 'large_final'?"),
        (["plan", "mask-criteria", "prune.rates.hidden=1.2"], "1.2 is not a prune rate"),
        (["plan", "mask-criteria", "treatments=[]"], "a study needs at least one"),
        (["run", "mask-criteria", "scale=digits", "--engine", "warp"], "'warp' is not an engine"),
        (["run", "mask-criteria", "scale=laptop"], "dataset 'mnist' was not found"),
        *(
            (["run", "mask-criteria", "scale=digits", "--cluster", address], "is not an address of a Ray cluster")
            for address in (":", "ray://", "ray://host", "host:port", "host:99999", "http://host:6379", "[::1]:")
        ),
        (["verify"], "there is no store at supermask-store"),
        (["verify", "--store", "nowhere"], "there is no store at nowhere"),
        (["query", "SELECT 1"], "there is no store at"),
        (["export", "abc", "out"], "there is no store at"),
        (["figure", "mask-criteria", "scale=digits"], "`supermask run` it first"),
    ],
)
def test_invalid_input_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(call(*arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "small.yaml: the file is empty"),
        (TEXT + "network: fc\n", "small.yaml, line"),
        (TEXT.replace("large_final, random]", "large_finall]"), "small.yaml, line 9: treatments[0].criterion"),
        (TEXT.replace("hidden: 0.5", "hidden: 1.2"), "small.yaml, line 7: prune.rates.hidden: 1.2 is not a prune rate"),
        (TEXT.replace("seeds: 2", "seeds: 0"), "small.yaml, line 5: seeds: 0"),
        (TEXT.replace("hidden: 0.5", "hidden: 0.99"), "would leave no weight in"),
    ],
)
def test_invalid_study_file(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(call("run", write_study(tmp_path, text=text), "--store", tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_idx_file(compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(1000)
        labels = struct.pack(">II", 0x801, count) + bytes(count)
        for name, data in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            packed = gzip.compress(data, 1)[: -20 if "images" in name else None] if compressed else data
            (folder / f"{name}{'.gz' if compressed else ''}").write_bytes(packed)
    monkeypatch.setenv("SUPERMASK_DATA", str(tmp_path / "data"))
    message = refused(call("run", write_study(tmp_path), "dataset=mnist", "--store", tmp_path / "store"))
    assert "train-images-idx3-ubyte" in message
    assert not (tmp_path / "store").exists()


def test_sql_error_is_one_line(trained: TrainedStudy) -> None:
    message = refused(call("query", "SELECT nothing FROM runs", "--store", trained.store))
    assert "nothing" in message
    assert message.count("\n") == 1
    assert "is empty" in refused(call("query", " ; ", "--store", trained.store))


@pytest.mark.slow
def test_unknown_run_ambiguous_run_and_file_in_place_of_a_folder(trained: TrainedStudy, tmp_path: Path) -> None:
    store = ("--store", trained.store)
    assert "begins with 'zz'" in refused(call("export", "zz", tmp_path / "out", *store))
    ids = sorted(trained.plan.runs)
    first = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])
    assert "Give more of the id" in refused(call("export", first, tmp_path / "out", *store))
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in refused(call("export", ids[0], tmp_path / "file", *store))
    assert "is not a folder" in refused(call("figure", trained.study, "--out", tmp_path / "file", *store))
    assert "not a folder" in refused(call("run", trained.study, "--store", tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def newer_store(trained: TrainedStudy, tmp_path: Path) -> Path:
    """The session's store, with one run in a newer store format."""
    shutil.copytree(trained.store, tmp_path / "store")
    make_newer(tmp_path / "store", trained.run_id(2))
    return tmp_path / "store"


@pytest.mark.parametrize("command", ["verify", "run"])
def test_a_run_of_a_newer_version_is_not_touched(command: str, trained: TrainedStudy, newer_store: Path) -> None:
    arguments = [] if command == "verify" else [trained.study]
    assert NEWER in refused(call(command, *arguments, "--store", newer_store))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "table", "query", "figure", "report"])
def test_reading_leaves_a_run_of_a_newer_version_out(
    command: str, trained: TrainedStudy, newer_store: Path, tmp_path: Path
) -> None:
    arguments = {
        "query": ["SELECT count(*) AS n FROM runs"],
        "figure": [trained.study, "--out", tmp_path / "figures", "--only", "accuracy", "--format", "svg"],
        "report": [trained.study, "--out", tmp_path / "report.html"],
    }.get(command, [trained.study])
    result = call(command, *arguments, "--store", newer_store)
    assert result.status == 0
    assert f"{trained.run_id(2)} {NEWER}" in " ".join(result.err.split())
    if command == "query":
        assert "17" in result.out
    if command == "status":
        assert "to do" in result.out


def test_a_run_of_a_newer_version_has_no_layers_in_the_table(trained: TrainedStudy, newer_store: Path) -> None:
    status, out, err = call("table", trained.study, "--store", newer_store, "--layers")
    assert status == 0
    assert NEWER in " ".join(err.split())
    ids = {line.partition(",")[0] for line in out.splitlines()[1:]}
    assert ids == set(trained.plan.runs) - {trained.run_id(2)}


def test_a_plan_estimates_without_a_run_of_a_newer_version(trained: TrainedStudy, newer_store: Path) -> None:
    status, out, _ = call("plan", trained.study, "--store", newer_store, "scale=more")
    assert status == 0
    assert "(from runs in the store" in out


# --- failures of the machine ---


def test_unwritable_store_folder(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs a /proc, where nobody can make a folder")
    message = refused(call("run", write_study(tmp_path), "--store", "/proc/no-store"), status=1)
    assert "the store cannot use /proc/no-store" in message
    assert "--store" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 kB, which holds some of the runs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    asked = [mount or "mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk_loses_no_run(small_disk: Path, tmp_path: Path) -> None:
    study, store = write_study(tmp_path), small_disk / "store"
    full = supermask("run", study, "--store", store, "--workers", 1)
    assert full.status == 1
    assert full.err.startswith("supermask: the store cannot use ")
    assert "the disk is full. Free some space" in full.err
    assert "Traceback" not in full.err
    # Other lines name the engine and, with an empty cache, the compilation of kernels.
    kept = full.out.count("% in ")
    assert 0 < kept < RUNS
    assert call("verify", "--store", store).out == f"{kept} held\n"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    more = supermask("run", study, "--store", store, "--workers", 1)
    assert more.status == 0, more.err
    assert more.out.count("% in ") == RUNS - kept
    assert call("verify", "--store", store).out == f"{RUNS} held\n"


@pytest.mark.slow
def test_file_size_limit_loses_no_run(tmp_path: Path) -> None:
    """Like a full disk, but without root: the system limits the size of files."""
    resource = pytest.importorskip("resource")
    study, store = write_study(tmp_path), tmp_path / "store"
    result = subprocess.run(
        [sys.executable, "-m", "supermask", "run", str(study), "--store", str(store), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("supermask: ")
    assert "Traceback" not in result.stderr
    assert not list((store / "staging").glob("*"))


@pytest.mark.slow
def test_full_standard_output_is_a_system_failure(trained: TrainedStudy) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "supermask", "table", *trained.args]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "supermask: system error: No space left on device.\n"


@pytest.mark.slow
def test_closed_pipe_prints_no_error(trained: TrainedStudy) -> None:
    command = [sys.executable, "-m", "supermask", "table", *trained.args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert errors == ""


# --- Ctrl-C ---


def test_interrupted_run_prints_how_to_resume(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise StudyInterrupted(7)

    monkeypatch.setattr(runs, "run", stopped)
    status, _, err = call("run", *trained.args)
    assert status == 130
    assert err == "Stopped. 7 runs are left; the same command resumes. Finished runs are kept.\n"


def test_interruption_of_other_commands_exits_with_130(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "study_rows", interrupted)
    assert "interrupted" in refused(call("status", *trained.args), status=130)


def test_failed_certificates_exit_with_3(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = runs.run(str(trained.study), store=trained.store)
    schedule.status[trained.run_id(1)] = "certificate_failed"
    schedule.status[trained.run_id(2)] = "ancestor_certificate_failed"
    monkeypatch.setattr(runs, "run", lambda *arguments: schedule)
    status, out, err = call("run", *trained.args)
    assert status == 3
    assert f"{RUNS - 2} finished, 1 with a certificate that does not hold, 1 not possible" in out
    assert (
        "the certificate of 1 run failed, in two trainings, so it is not a result" in err and trained.run_id(1) in err
    )
    assert "1 below it cannot be trained. `supermask verify` prints the reasons." in err and err.count("\n") == 1
