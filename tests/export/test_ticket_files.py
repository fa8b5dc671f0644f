"""Ticket files from anywhere: every bit counts, nothing is executed, nothing is believed before it was checked."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import call, refused
from helpers.ticket_runs import Arrays, Runs, forged, sealed, ticket_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from supermask import SystemFailure, Ticket, UserError, load_ticket, pack_run, save_ticket
from supermask.export.tickets.container import MAX_HEADER, InvalidTicket, canonical_json, to_bytes
from supermask.export.tickets.files import encode_ticket, read_ticket

Change = Callable[[dict[str, Any], Arrays], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return ticket_runs(tmp_path_factory.mktemp("ticket-files"))


def small() -> bytes:
    """The file of a ticket with every kind of tensor in it: a constant, values, frozen values, floats and integers."""
    masks = {"a.weight": torch.arange(15).reshape(3, 5) % 2 == 0, "b": torch.arange(6).reshape(2, 3) < 4}
    weights = {"a.weight": torch.full((3, 5), -0.5) * masks["a.weight"], "b": torch.arange(6.0).reshape(2, 3) - 2}
    others = {"ä.bias": torch.tensor([1.5, -2.0]), "count": torch.tensor(3)}
    facts = {"accuracy": {"test": 1e-05, "of": "é\x7f\n"}, "empty": {}, "list": [1, True, None, "a/b\\"]}
    return encode_ticket(Ticket(masks, weights, others, frozen={"b": weights["b"]}, facts=facts))


def read(data: bytes) -> Ticket:
    return read_ticket(BytesIO(data), len(data))


# --- damage: every bit, every length ---


def test_every_flipped_bit_of_a_small_file_is_refused() -> None:
    data = small()
    assert read(data).facts["list"] == [1, True, None, "a/b\\"]
    passed = []
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                read(bytes(flipped))
                passed.append((place, bit))
            except InvalidTicket:
                pass
    assert not passed


def test_every_shorter_and_every_longer_file_is_refused() -> None:
    data = small()
    for length in range(len(data)):
        with pytest.raises(InvalidTicket):
            read(data[:length])
    for more in (b"\0", b" ", data, bytes(4096)):
        with pytest.raises(InvalidTicket):
            read(data + more)


@settings(max_examples=400)
@given(st.data())
def test_a_flipped_bit_or_a_cut_in_a_runs_ticket_is_one_message(runs: Runs, data: st.DataObject) -> None:
    whole = encode_ticket(pack_run(runs.store, runs.id("frozen")))
    header = 8 + int.from_bytes(whole[:8], "little")
    region = data.draw(st.sampled_from([(0, 8), (8, header), (header, len(whole)), (len(whole) - 8, len(whole))]))
    place = data.draw(st.integers(region[0], region[1] - 1))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[place:]
    path = runs.folder.parent / "damaged.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged\.safetensors is not a ticket that can be used: .*\.$"):
        load_ticket(path)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_bytes_of_any_kind_are_refused(noise: bytes, place: int) -> None:
    data = small()
    for bad in (noise, data[:place] + noise + data[place:], data[:place] + noise + data[place + len(noise) :]):
        if bad != data:
            with pytest.raises(InvalidTicket):
                read(bad)


@pytest.mark.parametrize("length", [0x0480, 0x0580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length: int) -> None:
    mask = {"w": torch.ones(2, 3, dtype=torch.bool)}
    weights = {"w": torch.rand(2, 3)}
    for padding in range(1000):
        data = encode_ticket(Ticket(mask, weights, {}, facts={"padding": "x" * padding}))
        if int.from_bytes(data[:8], "little") == length:
            break
    assert data[:2] in (b"\x80\x04", b"\x80\x05")
    assert torch.equal(read(data).weights["w"], weights["w"])


# --- versions ---

GOLDEN = Path(__file__).parents[1] / "golden"


def by_seed() -> Ticket:
    """Masks on the initial weights of a seed."""
    masks = {"fc1.weight": torch.arange(512).reshape(8, 64) % 3 == 0, "fc2.weight": torch.arange(80).reshape(10, 8) > 9}
    frozen = {"fc2.weight": None}
    return Ticket(masks, network="fc-8", dataset="digits", seed=3, frozen=frozen, facts={"weights": "start"})


@pytest.mark.parametrize(("name", "made"), [("values", lambda: read(small())), ("seed", by_seed)])
def test_files_of_format_1_are_read_and_written_as_they_were(name: str, made: Callable[[], Ticket]) -> None:
    """These two files are never written again."""
    path = GOLDEN / f"ticket-1-{name}.safetensors"
    found, expected = load_ticket(path), made()
    assert encode_ticket(expected) == path.read_bytes() == encode_ticket(found)
    assert found.facts == expected.facts
    network = expected.network_weights()
    assert all(torch.equal(tensor, network[n]) for n, tensor in found.network_weights().items())


def test_the_docs_name_every_key_and_every_kind_of_tensor() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tickets.md").read_text()
    document = _document()
    keys = {*document, *document["layers"][0]}
    assert not [key for key in keys if f"`{key}`" not in page]
    assert not [
        kind for kind in ("mask", "kept", "constant", "signs", "frozen", "other") if f"`{kind}/<name>`" not in page
    ]
    assert f"{MAX_HEADER:,}" in page


# --- other files ---


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_under_another_name_is_not_opened(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "ticket.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(UserError, match="is not a ticket that can be used: it is"):
        load_ticket(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_not_opened(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "ticket.safetensors"
    torch.save({"w": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"as torch\.save writes: nothing of the kind is ever opened"):
        load_ticket(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"supermask": "{}"}])
def test_a_safetensors_file_of_somebody_elses_is_no_ticket(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros((2, 2), np.float32)}, path, metadata)
    with pytest.raises(UserError, match="may be a safetensors file, but it is no ticket"):
        load_ticket(path)


def test_a_folder_a_missing_file_and_a_device_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        load_ticket(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_ticket(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        load_ticket(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="cut short: it has 0 bytes"):
        load_ticket(tmp_path / "empty")


def test_hostile_names_are_shown_on_one_line_and_never_in_full(tmp_path: Path) -> None:
    for name in ("a\nb\x1b[31m", "\u202egnp.exe", "[bold]x"):
        path = tmp_path / name
        path.write_bytes(b"nothing")
        said = refused(call("inspect", path))
        assert said.count("\n") == 1
        assert "\x1b" not in said
        assert "\u202e" not in said
    assert len(refused(call("inspect", tmp_path / ("x" * 10_000)), status=1)) < 300
    assert len(refused(call("pack", "x" * 10_000, tmp_path / "ticket", "--store", tmp_path))) < 300


# --- headers ---


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


DEEP = 200_000


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe{}",
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"__metadata__":{"supermask.ticket":NaN}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[1e3],"data_offsets":[0,1000]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}",
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[' + b",".join([b"0"] * 99) + b"]}}",
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":[]}',
        b'{"__metadata__":{"supermask.ticket":"{}"}} ',
    ],
    ids=range(17),
)
def test_headers_that_are_none_are_refused(header: bytes) -> None:
    for data in (
        with_header(header),
        with_header(header, bytes(1000)),
        with_header(header + b" " * (-len(header) % 8)),
    ):
        with pytest.raises(InvalidTicket):
            read(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":1,"a":1}',
        '{"a": 1}',
        '{"a":1E5}',
        '{"b":1,"a":1}',
        '{"a":"\\u00E9"}',
        '{"a":' + "9" * 5000 + "}",
        '{"a":"é"}',
        '{"format":2}',
    ],
    ids=range(16),
)
def test_documents_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidTicket):
        read(to_bytes(text, {}))


def test_a_header_larger_than_any_ticket_is_not_read() -> None:
    class NotRead(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size in range(9)
            return super().read(size)

    for length in (MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1):
        with pytest.raises(InvalidTicket, match=r"its header would be|cut short"):
            read_ticket(NotRead(length.to_bytes(8, "little") + b"{}"), 2**41)


def test_another_version_is_told_apart_from_damage() -> None:
    newer = forged(small(), lambda document, tensors: document.update(format=2, new=[1]))
    with pytest.raises(InvalidTicket, match="of ticket format 2, and this supermask reads format 1"):
        read(newer)


# --- forged: every hash is right, and still it cannot be ---


def layer(index: int = 0, **changes: Any) -> Change:
    return lambda document, tensors: document["layers"][index].update(changes)


def put(name: str, array: Any) -> Change:
    return lambda document, tensors: tensors.update({name: array})


def drop(name: str) -> Change:
    return lambda document, tensors: tensors.__delitem__(name)


def about(**changes: Any) -> Change:
    return lambda document, tensors: document.update(changes)


def last_bit(name: str) -> Change:
    def change(document: dict[str, Any], tensors: Arrays) -> None:
        tensors[name][-1] |= 1

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (layer(shape=[3, 6]), "as many weights as its header says|sizes that its layers need|written"),
        (layer(shape=[10**6, 10**6]), "sizes that its layers need"),
        (layer(shape=[2**40, 2**40]), "sizes that its layers need"),
        (layer(shape=[2**41, 1]), "cannot be as it says"),
        (layer(shape=[15]), "not a bool tensor of a kernel's shape"),
        (layer(shape=[3, 0]), "cannot be as it says"),
        (layer(shape="35"), "cannot be as it says"),
        (layer(kept=7), "as many weights as its header says"),
        (layer(kept=-1), "cannot be as it says"),
        (layer(kept=10**12), "cannot be as it says"),
        (layer(kept=True), "cannot be as it says"),
        (layer(weights="values"), "sizes that its layers need"),
        (layer(weights="pickle"), "cannot be as it says"),
        (layer(weights=[]), "cannot be as it says"),
        (layer(1, weights="from_seed"), "of no use: 'kept/b'"),
        (layer(1, frozen="from_seed"), "of no use: 'frozen/b'"),
        (layer(frozen="from_seed"), "without a seed"),
        (layer(weights="from_seed"), "of no use: 'constant/a.weight'"),
        (layer(frozen="values"), "sizes that its layers need"),
        (layer(1, frozen="zero"), "of no use: 'frozen/b'"),
        (layer(1, name="a.weight"), "two of its layers have one name"),
        (layer(name=None), "cannot be as it says"),
        (layer(more=1), "lacks something"),
        (about(layers=[]), "of no use"),
        (about(layers={}), "of another kind"),
        (about(layers=[1]), "lacks something"),
        (about(facts=[]), "of another kind"),
        (about(more=1), "lack something"),
        (about(network=1), "of another kind"),
        (about(network="fc-8"), "names a network and the data set"),
        (about(network="fc-8", dataset="digits"), "in fc-8 on digits"),
        (about(network="fc-" + "9" * 10_000, dataset="digits"), "is not a network"),
        (about(network="fc-8", dataset="../../etc/passwd"), "is not known"),
        (about(seed=0), "come together"),
        (about(seed=0, initialiser="truncated_normal", initial_content="0"), "name it, and its data set"),
        (about(seed=0, initialiser="exec", initial_content="0"), "its initialiser 'exec' is not known"),
        (about(others="from_seed"), "of no use"),
        (about(others="nowhere"), "where its other tensors are"),
        (last_bit("mask/a.weight"), "as many weights as its header says"),
        (last_bit("signs/a.weight"), None),
        (put("constant/a.weight", np.array([-0.5], np.float32)), "is negative"),
        (put("constant/a.weight", np.zeros(2, np.float32)), "sizes that its layers need"),
        (put("mask/a.weight", np.zeros(3, np.uint8)), "sizes that its layers need"),
        (put("mask/a.weight", np.zeros(2, np.int64)), "sizes that its layers need"),
        (put("other/more", np.zeros(2, np.uint8)), "of no use"),
        (put("more", np.zeros(2, np.float32)), "of no use"),
        (put("other/b", np.zeros(2, np.float32)), "is masked"),
        (drop("mask/b"), "sizes that its layers need"),
        (drop("kept/b"), "sizes that its layers need"),
    ],
)
def test_what_cannot_be_is_refused_though_every_hash_is_right(change: Change, said: str | None) -> None:
    bad = forged(small(), change)
    if said is None:
        assert read(bad).masks  # the last sign of eight is a weight's
        return
    with pytest.raises(InvalidTicket, match=said):
        read(bad)


def test_bits_beyond_the_last_weight_are_refused() -> None:
    """Such a mask keeps as many weights as it should, but not all of them are in it."""

    def beyond(document: dict[str, Any], tensors: Arrays) -> None:
        tensors["mask/a.weight"][0] &= 0x7F
        tensors["mask/a.weight"][1] |= 1

    with pytest.raises(InvalidTicket, match="beyond the number of weights"):
        read(forged(small(), beyond))


def test_a_small_file_makes_no_large_arrays(tmp_path: Path) -> None:
    """Whatever it claims: what is refused has cost its own size and little more."""
    empty = np.zeros(0, np.uint8)
    entry = {"name": "w", "shape": [10**6, 10**6], "kept": 10**12, "weights": "constant", "frozen": "zero"}
    document = json.loads(canonical_json({**_document(), "layers": [entry]}))
    claims = [
        sealed(document, {"mask/w": empty, "signs/w": empty, "constant/w": np.ones(1, np.float32)}),
        with_header(canonical_json({"a": 1}).encode() + b" " * 1001),
        forged(small(), layer(shape=[2**40, 2**40], kept=2**70)),
        with_header(_claiming(document)),
    ]
    tracemalloc.start()
    for data in claims:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(InvalidTicket):
            read(data)
        assert tracemalloc.get_traced_memory()[1] - before < 40 * len(data) + 50_000
    tracemalloc.stop()


def _document() -> dict[str, Any]:
    data = small()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["supermask.ticket"])
    return found


def _claiming(document: dict[str, Any]) -> bytes:
    """A header that says that the arrays of 10^12 weights follow; nothing does."""
    size = 10**12 // 8
    entries: dict[str, Any] = {"__metadata__": {"supermask.ticket": canonical_json(document)}}
    entries["constant/w"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for i, name in enumerate(("mask/w", "signs/w")):
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [4 + i * size, 4 + (i + 1) * size]}
    text = canonical_json(entries).encode()
    return text + b" " * (-len(text) % 8)


# --- writing ---


def ticket() -> Ticket:
    return read(small())


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already: give another name, or --force"):
        save_ticket(ticket(), path)
    assert path.read_text() == "mine"
    save_ticket(ticket(), path, force=True)
    assert path.read_bytes() == small()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(UserError, match="is a folder or a device"):
            save_ticket(ticket(), tmp_path, force)
        with pytest.raises(UserError, match="is a folder or a device"):
            save_ticket(ticket(), "/dev/null", force)
        with pytest.raises(UserError, match="its folder is not there"):
            save_ticket(ticket(), tmp_path / "nowhere" / "ticket", force)


def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ticket"
    path.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemFailure, match="cannot be written: No space left on device"):
        save_ticket(ticket(), path, force=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("ticket", "before")]


def test_facts_beyond_the_largest_header_are_not_written(tmp_path: Path) -> None:
    whole = ticket()
    large = Ticket(whole.masks, whole.weights, whole.others, frozen=whole.frozen, facts={"text": "x" * MAX_HEADER})
    with pytest.raises(UserError, match="a ticket holds 4,194,304"):
        save_ticket(large, tmp_path / "ticket")
    assert not list(tmp_path.iterdir())
