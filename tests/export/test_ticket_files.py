"""Ticket files from untrusted sources: every bit is checked, nothing is executed, memory use is bounded."""

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
from helpers.harness import IS_FULL
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


def small_file() -> bytes:
    """Return the file of a ticket with every kind of tensor: constant, values, frozen values, floats and integers."""
    masks = {"a.weight": torch.arange(15).reshape(3, 5) % 2 == 0, "b": torch.arange(6).reshape(2, 3) < 4}
    weights = {"a.weight": torch.full((3, 5), -0.5) * masks["a.weight"], "b": torch.arange(6.0).reshape(2, 3) - 2}
    others = {"ä.bias": torch.tensor([1.5, -2.0]), "count": torch.tensor(3)}
    facts = {"accuracy": {"test": 1e-05, "of": "é\x7f\n"}, "empty": {}, "list": [1, True, None, "a/b\\"]}
    return encode_ticket(Ticket(masks, weights, others, frozen={"b": weights["b"]}, facts=facts))


def read(data: bytes) -> Ticket:
    return read_ticket(BytesIO(data), len(data))


# --- damage ---


@pytest.mark.slow
def test_every_flipped_bit_of_a_small_file_is_detected() -> None:
    data = small_file()
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


def test_truncated_and_extended_files_are_refused() -> None:
    data = small_file()
    for length in range(len(data)):
        with pytest.raises(InvalidTicket):
            read(data[:length])
    for more in (b"\0", b" ", data, bytes(4096)):
        with pytest.raises(InvalidTicket):
            read(data + more)


@pytest.mark.slow
@settings(max_examples=400 if IS_FULL else 200)
@given(st.data())
def test_damage_of_a_packed_run_is_one_message(runs: Runs, data: st.DataObject) -> None:
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


@pytest.mark.slow
@settings(max_examples=300 if IS_FULL else 200)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_arbitrary_bytes_are_refused(noise: bytes, place: int) -> None:
    data = small_file()
    for bad in (noise, data[:place] + noise + data[place:], data[:place] + noise + data[place + len(noise) :]):
        if bad != data:
            with pytest.raises(InvalidTicket):
                read(bad)


@pytest.mark.parametrize("length", [0x0480, 0x0580])
def test_header_whose_length_looks_like_a_pickle_is_read(length: int) -> None:
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


def ticket_from_seed() -> Ticket:
    """Return masks on the initial weights of a seed."""
    masks = {"fc1.weight": torch.arange(512).reshape(8, 64) % 3 == 0, "fc2.weight": torch.arange(80).reshape(10, 8) > 9}
    frozen = {"fc2.weight": None}
    return Ticket(masks, network="fc-8", dataset="digits", seed=3, frozen=frozen, facts={"weights": "start"})


@pytest.mark.parametrize(("name", "make_ticket"), [("values", lambda: read(small_file())), ("seed", ticket_from_seed)])
def test_golden_files_of_format_1_are_read_and_written_unchanged(name: str, make_ticket: Callable[[], Ticket]) -> None:
    """These two files must never be regenerated."""
    path = GOLDEN / f"ticket-1-{name}.safetensors"
    found, expected = load_ticket(path), make_ticket()
    assert encode_ticket(expected) == path.read_bytes() == encode_ticket(found)
    assert found.facts == expected.facts
    network = expected.network_weights()
    assert all(torch.equal(tensor, network[n]) for n, tensor in found.network_weights().items())


def test_docs_name_every_key_and_every_kind_of_tensor() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tickets.md").read_text()
    document = _document()
    keys = {*document, *document["layers"][0]}
    assert not [key for key in keys if f"`{key}`" not in page]
    assert not [
        kind for kind in ("mask", "kept", "constant", "signs", "frozen", "other") if f"`{kind}/<name>`" not in page
    ]
    assert f"{MAX_HEADER:,}" in page


# --- files that are not tickets ---


class Bomb:
    """Object that creates a folder if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_under_another_name_is_not_executed(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "ticket.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(UserError, match="is not a ticket that can be used: it is"):
        load_ticket(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_file_of_torch_save_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "ticket.safetensors"
    torch.save({"w": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"as torch\.save writes\. Such files can execute code and are not opened"):
        load_ticket(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"supermask": "{}"}])
def test_other_safetensors_files_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros((2, 2), np.float32)}, path, metadata)
    with pytest.raises(UserError, match="may be a safetensors file, but not a ticket"):
        load_ticket(path)


@pytest.mark.parametrize("source", [None, 3, {}, ["a"]])
def test_other_objects_are_refused(source: Any) -> None:
    with pytest.raises(UserError, match="is not a ticket's path: give a file, a folder or a repository owner/name"):
        load_ticket(source)


def test_folders_missing_files_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        load_ticket(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_ticket(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        load_ticket(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="it is truncated: it has 0 bytes"):
        load_ticket(tmp_path / "empty")


def test_hostile_file_names_are_sanitized_and_cut(tmp_path: Path) -> None:
    for name in ("a\nb\x1b[31m", "\u202egnp.exe", "[bold]x"):
        path = tmp_path / name
        path.write_bytes(b"nothing")
        message = refused(call("inspect", path))
        assert message.count("\n") == 1
        assert "\x1b" not in message
        assert "\u202e" not in message
    assert len(refused(call("inspect", tmp_path / ("x" * 10_000)))) < 400
    assert len(refused(call("pack", "x" * 10_000, tmp_path / "ticket", "--store", tmp_path))) < 300


# --- headers ---


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


NESTING = 200_000


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe{}",
        b"[" * NESTING,
        b'{"a":' * NESTING,
        b'{"__metadata__":{"supermask.ticket":NaN}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[1e3],"data_offsets":[0,1000]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}",
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"dtype":"U8","shape":[' + b",".join([b"0"] * 99) + b"]}}",
        # Tensors without bytes, of shapes that NumPy refuses.
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":{"data_offsets":[0,0],"dtype":"F32","shape":[0,1099511627776,1099511627776]}}',
        b'{"__metadata__":{"supermask.ticket":"{}"},"a":[]}',
        b'{"__metadata__":{"supermask.ticket":"{}"}} ',
    ],
    ids=range(18),
)
def test_invalid_headers_are_refused(header: bytes) -> None:
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
        "[" * NESTING,
        '{"a":' * NESTING + "1" + "}" * NESTING,
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
def test_invalid_documents_are_refused(text: str) -> None:
    with pytest.raises(InvalidTicket):
        read(to_bytes(text, {}))


def test_oversized_header_is_not_read() -> None:
    class NotRead(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size in range(9)
            return super().read(size)

    for length in (MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1):
        with pytest.raises(InvalidTicket, match=r"its header would have|it is truncated"):
            read_ticket(NotRead(length.to_bytes(8, "little") + b"{}"), 2**41)


def test_newer_format_has_its_own_message() -> None:
    newer = forged(small_file(), lambda document, tensors: document.update(format=2, new=[1]))
    with pytest.raises(InvalidTicket, match="it has ticket format 2, and this release reads format 1"):
        read(newer)


# --- invalid content with correct checksums ---


def layer_with(index: int = 0, **changes: Any) -> Change:
    return lambda document, tensors: document["layers"][index].update(changes)


def with_tensor(name: str, array: Any) -> Change:
    return lambda document, tensors: tensors.update({name: array})


def without_tensor(name: str) -> Change:
    return lambda document, tensors: tensors.__delitem__(name)


def document_with(**changes: Any) -> Change:
    return lambda document, tensors: document.update(changes)


def last_bit(name: str) -> Change:
    def change(document: dict[str, Any], tensors: Arrays) -> None:
        tensors[name][-1] |= 1

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (layer_with(shape=[3, 6]), "as many weights as its header says|sizes that its layers need"),
        (layer_with(shape=[10**6, 10**6]), "sizes that its layers need"),
        (layer_with(shape=[2**40, 2**40]), "sizes that its layers need"),
        (layer_with(shape=[2**41, 1]), "has an impossible name, shape, count or encoding"),
        (layer_with(shape=[15]), "not a bool tensor of a kernel's shape"),
        (layer_with(shape=[3, 0]), "has an impossible name, shape, count or encoding"),
        (layer_with(shape="35"), "has an impossible name, shape, count or encoding"),
        (layer_with(kept=7), "as many weights as its header says"),
        (layer_with(kept=-1), "has an impossible name, shape, count or encoding"),
        (layer_with(kept=10**12), "has an impossible name, shape, count or encoding"),
        (layer_with(kept=True), "has an impossible name, shape, count or encoding"),
        (layer_with(weights="values"), "sizes that its layers need"),
        (layer_with(weights="pickle"), "has an impossible name, shape, count or encoding"),
        (layer_with(weights=[]), "has an impossible name, shape, count or encoding"),
        (layer_with(1, weights="from_seed"), "that is not used: 'kept/b'"),
        (layer_with(1, frozen="from_seed"), "that is not used: 'frozen/b'"),
        (layer_with(frozen="from_seed"), "without a seed"),
        (layer_with(weights="from_seed"), "that is not used: 'constant/a.weight'"),
        (layer_with(frozen="values"), "sizes that its layers need"),
        (layer_with(1, frozen="zero"), "that is not used: 'frozen/b'"),
        (layer_with(1, name="a.weight"), "two of its layers have the same name"),
        (layer_with(name=None), "has an impossible name, shape, count or encoding"),
        (layer_with(more=1), "missing or unknown keys"),
        (document_with(layers=[]), "that is not used"),
        (document_with(layers={}), "values of another type"),
        (document_with(layers=[1]), "missing or unknown keys"),
        (document_with(facts=[]), "values of another type"),
        (document_with(more=1), "missing or unknown keys"),
        (document_with(network=1), "values of another type"),
        (document_with(network="fc-8"), "names both a network and the data set"),
        (document_with(network="fc-8", dataset="digits"), "in fc-8 on digits"),
        (document_with(network="fc-" + "9" * 10_000, dataset="digits"), "is not a network"),
        (document_with(network="fc-8", dataset="../../etc/passwd"), "is unknown"),
        (document_with(seed=0), "are stored together or not at all"),
        (
            document_with(seed=0, initialiser="truncated_normal", initial_content="0"),
            "name the network and its data set",
        ),
        (document_with(seed=0, initialiser="exec", initial_content="0"), "its initializer 'exec' is unknown"),
        (document_with(others="from_seed"), "that is not used"),
        (document_with(others="nowhere"), "where its unmasked tensors come from"),
        (last_bit("mask/a.weight"), "as many weights as its header says"),
        (last_bit("signs/a.weight"), None),
        (with_tensor("constant/a.weight", np.array([-0.5], np.float32)), "is negative"),
        (with_tensor("constant/a.weight", np.zeros(2, np.float32)), "sizes that its layers need"),
        (with_tensor("mask/a.weight", np.zeros(3, np.uint8)), "sizes that its layers need"),
        (with_tensor("mask/a.weight", np.zeros(2, np.int64)), "sizes that its layers need"),
        (with_tensor("other/more", np.zeros(2, np.uint8)), "that is not used"),
        (with_tensor("more", np.zeros(2, np.float32)), "that is not used"),
        (with_tensor("other/b", np.zeros(2, np.float32)), "cannot be in `others`: it is masked"),
        (without_tensor("mask/b"), "sizes that its layers need"),
        (without_tensor("kept/b"), "sizes that its layers need"),
    ],
)
def test_invalid_content_with_correct_checksums_is_refused(change: Change, message: str | None) -> None:
    bad = forged(small_file(), change)
    if message is None:
        assert read(bad).masks  # The last bit of the packed signs belongs to a weight.
        return
    with pytest.raises(InvalidTicket, match=message):
        read(bad)


def test_bits_beyond_the_last_weight_are_refused() -> None:
    """The mask keeps the right count, but one of the bits lies in the padding."""

    def beyond(document: dict[str, Any], tensors: Arrays) -> None:
        tensors["mask/a.weight"][0] &= 0x7F
        tensors["mask/a.weight"][1] |= 1

    with pytest.raises(InvalidTicket, match="beyond its number of weights"):
        read(forged(small_file(), beyond))


def test_small_file_allocates_no_large_arrays(tmp_path: Path) -> None:
    """A refused file costs about its own size in memory, whatever sizes it claims."""
    empty = np.zeros(0, np.uint8)
    entry = {"name": "w", "shape": [10**6, 10**6], "kept": 10**12, "weights": "constant", "frozen": "zero"}
    document = json.loads(canonical_json({**_document(), "layers": [entry]}))
    claims = [
        sealed(document, {"mask/w": empty, "signs/w": empty, "constant/w": np.ones(1, np.float32)}),
        with_header(canonical_json({"a": 1}).encode() + b" " * 1001),
        forged(small_file(), layer_with(shape=[2**40, 2**40], kept=2**70)),
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
    data = small_file()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["supermask.ticket"])
    return found


def _claiming(document: dict[str, Any]) -> bytes:
    """Return a header that claims arrays of 10^12 weights."""
    size = 10**12 // 8
    entries: dict[str, Any] = {"__metadata__": {"supermask.ticket": canonical_json(document)}}
    entries["constant/w"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for i, name in enumerate(("mask/w", "signs/w")):
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [4 + i * size, 4 + (i + 1) * size]}
    text = canonical_json(entries).encode()
    return text + b" " * (-len(text) % 8)


# --- writing ---


def ticket() -> Ticket:
    return read(small_file())


def test_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already: give another name, or --force"):
        save_ticket(ticket(), path)
    assert path.read_text() == "mine"
    save_ticket(ticket(), path, force=True)
    assert path.read_bytes() == small_file()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(UserError, match="is a folder or a device"):
            save_ticket(ticket(), tmp_path, force)
        with pytest.raises(UserError, match="is a folder or a device"):
            save_ticket(ticket(), "/dev/null", force)
        with pytest.raises(UserError, match="its folder does not exist"):
            save_ticket(ticket(), tmp_path / "nowhere" / "ticket", force)


def test_disk_error_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ticket"
    path.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemFailure, match="cannot be written: No space left on device"):
        save_ticket(ticket(), path, force=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("ticket", "before")]


def test_facts_larger_than_a_header_are_not_written(tmp_path: Path) -> None:
    whole = ticket()
    large = Ticket(whole.masks, whole.weights, whole.others, frozen=whole.frozen, facts={"text": "x" * MAX_HEADER})
    with pytest.raises(UserError, match="a ticket holds 4,194,304"):
        save_ticket(large, tmp_path / "ticket")
    assert not list(tmp_path.iterdir())
