"""Tickets as folders and repositories: configuration, model card, upload and download against a local Hub."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.command_line import call, refused, supermask_each
from helpers.fake_hub import FakeHub, fake_hub
from helpers.ticket_runs import Runs, ticket_runs
from ruamel.yaml import YAML

from supermask import Ticket, UserError, load_ticket, pack_run, save_ticket_folder
from supermask.core.errors import SystemFailure
from supermask.export.tickets.files import encode_ticket
from supermask.export.tickets.folders import FOLDER_FILES
from supermask.export.tickets.hub import download_ticket, push_ticket
from supermask.export.tickets.sources import Repository, is_repository, parse_repository

# huggingface_hub sends an LFS object in a way that its HTTP client will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return ticket_runs(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A local Hub, and a cache of its own for this process and for every command."""
    cache = str(tmp_path / "hub-cache")
    settings = {"HF_HOME": cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def front_matter(folder: Path) -> dict[str, object]:
    text = (folder / "README.md").read_text().split("---\n")[1]
    return dict(YAML(typ="safe").load(text))


# --- folders ---


@pytest.mark.slow
def test_folder_holds_ticket_configuration_and_card(runs: Runs, tmp_path: Path) -> None:
    run_id = runs.id("rewound")
    ended = call("pack", run_id, "--to-folder", "packed", "--store", runs.folder)
    assert (ended.status, ended.err) == (0, "")
    folder = tmp_path / "packed"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FOLDER_FILES)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert ended.out.startswith(f"packed  {size:,} bytes: fc-20 on digits, seed 0, level 2, 418 of 1,480 weights")
    packed = pack_run(runs.store, run_id)
    assert (folder / "ticket.safetensors").read_bytes() == encode_ticket(packed)
    config = json.loads((folder / "config.json").read_text())
    facts = runs.store.facts(run_id)
    expected = {
        "library_name": "supermask",
        "network": "fc-20",
        "dataset": "digits",
        "seed": 0,
        "weights": 1480,
        "kept": 418,
        "density": 418 / 1480,
        "criterion": "large_final",
        "mask1": "rewind",
        "mask0": "zero",
        "level": 2,
        "test_accuracy": facts["metrics"]["final_test_accuracy"],
        "certificate_held": True,
        "run_id": run_id,
        "ticket_sha256": hashlib.sha256(encode_ticket(packed)).hexdigest(),
    }
    assert {key: config[key] for key in expected} == expected


def test_card_follows_the_conventions_of_the_hub(runs: Runs, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run_id = runs.id("frozen")
    folder = save_ticket_folder(pack_run(runs.store, run_id), tmp_path / "packed")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "supermask"
    assert {"lottery-ticket", "pruning"} <= set(card.data.tags)
    result = card.data.eval_results[0]
    accuracy = runs.store.facts(run_id)["metrics"]["final_test_accuracy"]
    assert (result.metric_type, result.metric_value) == ("accuracy", accuracy)
    assert (result.task_type, result.dataset_name) == ("image-classification", "digits")
    for text in (run_id, "freeze_init", "large_final", "load_ticket(", "hidden 0.5"):
        assert text in card.text
    assert "the run's certificate held when it ended" in card.text


def test_untrained_ticket_has_no_metric(runs: Runs, tmp_path: Path) -> None:
    folder = save_ticket_folder(pack_run(runs.store, runs.id("rewound"), "start"), tmp_path / "packed")
    assert not {"model-index", "metrics"} & front_matter(folder).keys()
    assert "`start of training`" in (folder / "README.md").read_text()


HOSTILE = "x\n---\nlicense: mit\n# `Title` <script>alert(1)</script> | [a](http://b)"


def test_facts_of_others_add_neither_keys_nor_markup(tmp_path: Path) -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    facts = {
        "weights": HOSTILE,
        "supermask": HOSTILE,
        "accuracy": {"test": 0.5, "of": HOSTILE},
        "run": {"id": HOSTILE, "criterion": HOSTILE, "mask1": HOSTILE, "prune_rates": {HOSTILE: HOSTILE}},
    }
    folder = save_ticket_folder(Ticket({HOSTILE: mask}, {HOSTILE: mask.float()}, {}, facts=facts), tmp_path / "packed")
    assert set(front_matter(folder)) == {"library_name", "tags"}
    text = (folder / "README.md").read_text().split("---\n", 2)[2]
    assert "\nlicense" not in text and "\n# `Title`" not in text
    outside = "".join(line for line in text.split("`")[::2])
    assert "<script" not in outside and "http://b" not in outside


def test_existing_files_are_replaced_only_by_force(runs: Runs, tmp_path: Path) -> None:
    arguments = ("pack", runs.id("rewound"), "--to-folder", "packed", "--store", runs.folder)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "notes.txt").write_text("mine")
    assert call(*arguments).status == 0
    assert "has ticket.safetensors already" in refused(call(*arguments))
    assert call(*arguments, "--force").status == 0
    assert (tmp_path / "packed" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    for name in ("file", "file/inside"):
        assert "is not a folder" in refused(call(*arguments[:3], name, *arguments[4:]))


@pytest.mark.parametrize("targets", [(), ("t.safetensors", "--to-folder", "packed")])
def test_pack_needs_a_file_or_a_folder(runs: Runs, targets: tuple[str, ...]) -> None:
    message = refused(call("pack", runs.id("rewound"), *targets, "--store", runs.folder))
    assert "give FILE, or --to-folder DIR" in message


@pytest.mark.slow
def test_folder_is_loaded_inspected_and_evaluated(runs: Runs, tmp_path: Path) -> None:
    ticket = pack_run(runs.store, runs.id("late"))
    folder = save_ticket_folder(ticket, tmp_path / "packed")
    for source in (folder, str(folder), "packed", Path("packed"), folder / "ticket.safetensors"):
        assert encode_ticket(load_ticket(source)) == encode_ticket(ticket)
    assert "BROKEN" not in call("inspect", "packed").out
    assert call("eval", "packed").out.endswith("the same\n")
    assert call("masks", "packed", "--only", "density", "--out", "figures").status == 0


# --- sources ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("me/ticket", Repository("me/ticket")),
        ("me/fc-mnist_3.2@v1.0", Repository("me/fc-mnist_3.2", "v1.0")),
        ("me/t@refs/pr/1", Repository("me/t", "refs/pr/1")),
        *[
            (text, None)
            for text in ("ticket", "a/b/c", "/a", "a/", "../b", "a/..", "a/b@", "a/b@-x", "a b/c", "~/t", "")
        ],
        *[(text, None) for text in ("a/b--c", "a/b..c", "a/b@x..y", "a/b\n", "é/b", "-a/b", "a/b?x=1", "http://a/b")],
    ],
)
def test_repository_ids(text: str, expected: Repository | None) -> None:
    assert is_repository(text) == (expected is not None)
    if expected is not None:
        assert parse_repository(text) == expected
    else:
        with pytest.raises(UserError, match="is not a repository"):
            parse_repository(text)


def test_paths_come_before_repositories(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert not is_repository("here/missing")
    assert not is_repository("a/b.safetensors")
    assert not is_repository(Path("me/ticket"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_ticket("here/missing")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.export.tickets.hub.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'me/ticket'.* is not installed: pip install 'supermask\[hub\]'"):
        load_ticket("me/ticket")
    with pytest.raises(UserError, match=r"pip install 'supermask\[hub\]'"):
        push_ticket("folder", "me/ticket")


# --- the Hub ---

TOKEN = "hf_test"  # noqa: S105 (of the local Hub)


def test_ticket_is_pushed_and_loaded_again(runs: Runs, hub: FakeHub, tmp_path: Path) -> None:
    ticket = pack_run(runs.store, runs.id("rewound"))
    folder = save_ticket_folder(ticket, tmp_path / "packed")
    (folder / "secret.txt").write_text("not to be sent")
    assert push_ticket(folder, "me/ticket", private=True, endpoint=hub.address) == f"{hub.address}/me/ticket"
    files = {name: (folder / name).read_bytes() for name in FOLDER_FILES}
    assert hub.repositories == {"me/ticket": files}
    assert hub.private == {"me/ticket"}
    assert hub.messages == ["Add the ticket: fc-20 on digits, 28.24% of weights"]
    # Weights travel as an LFS object, not inside the commit.
    assert list(hub.objects.values()) == [files["ticket.safetensors"]]
    again = load_ticket(download_ticket(Repository("me/ticket"), hub.address))
    assert encode_ticket(again) == encode_ticket(ticket)


@pytest.mark.slow
def test_commands_use_the_address_and_token_of_huggingface_hub(runs: Runs, hub: FakeHub) -> None:
    hub.token = TOKEN
    save_ticket_folder(pack_run(runs.store, runs.id("rewound")), "packed")
    push = ("push", "packed", "me/ticket", "--message", "first")
    (ended,) = supermask_each(push, HF_TOKEN=TOKEN)
    assert (ended.status, ended.out, hub.messages) == (0, f"{hub.address}/me/ticket\n", ["first"])
    pushed, found, missing = supermask_each(push, ("inspect", "me/ticket@main"), ("inspect", "me/other"))
    assert "refused access to 'me/ticket' (status 401)" in refused(pushed)
    assert found.status == 0 and "fc-20 on digits" in found.out
    assert "there is no file, folder or repository 'me/other'" in refused(missing)
    assert hub.messages == ["first"]


def test_errors_of_the_hub_are_one_message(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["me/empty"] = {}
    with pytest.raises(UserError, match=r"'me/none', or it is private"):
        download_ticket(Repository("me/none"), hub.address)
    with pytest.raises(UserError, match=r"'me/empty' has no such revision"):
        download_ticket(Repository("me/empty", "v9"), hub.address)
    with pytest.raises(UserError, match=r"'me/empty' has no ticket\.safetensors"):
        download_ticket(Repository("me/empty"), hub.address)
    mask = torch.ones(2, 2, dtype=torch.bool)
    folder = save_ticket_folder(Ticket({"w": mask}, {"w": mask.float()}, {}), tmp_path / "packed")
    hub.status = 400
    with pytest.raises(SystemFailure, match="answered with status 400"):
        push_ticket(folder, "me/other", endpoint=hub.address)


@pytest.mark.slow
def test_unreachable_hub_is_a_failure_of_the_system(hub: FakeHub) -> None:
    with pytest.raises(SystemFailure, match=r"the Hub cannot be reached for 'me/ticket'"):
        download_ticket(Repository("me/ticket"), "http://127.0.0.1:9")


def test_file_of_a_repository_is_read_as_strictly_as_any_other(hub: FakeHub) -> None:
    hub.repositories["me/bad"] = {"ticket.safetensors": b"\x80\x05pickle"}
    with pytest.raises(UserError, match="is not a ticket that can be used"):
        load_ticket(download_ticket(Repository("me/bad"), hub.address))


def test_only_whole_and_valid_folders_are_pushed(hub: FakeHub, tmp_path: Path) -> None:
    mask = torch.tensor([[True, True], [False, True]])
    values = torch.ones(2, 2)
    bad = Ticket({"w": mask}, {"w": values}, {}, facts={"run": {"certificate": {"held": False, "checks": {}}}})
    folder = save_ticket_folder(bad, tmp_path / "bad")
    with pytest.raises(UserError, match="a check of the ticket is broken"):
        push_ticket(folder, "me/bad", endpoint=hub.address)
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README\.md: give a folder that `supermask pack --to-folder` wrote"):
        push_ticket(folder, "me/bad", endpoint=hub.address)
    with pytest.raises(UserError, match="leave out the revision"):
        push_ticket(folder, "me/bad@main", endpoint=hub.address)
    assert hub.requests == []


@pytest.mark.slow
def test_loading_a_file_imports_no_hub_client(runs: Runs, tmp_path: Path) -> None:
    import subprocess

    save_ticket_folder(pack_run(runs.store, runs.id("rewound")), "packed")
    code = "import sys, supermask; supermask.load_ticket('packed'); print('huggingface_hub' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
