"""Study files, scales and overrides: parsing, priorities, and error messages."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.file_refusals import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from supermask.core.errors import UserError, quote
from supermask.study.loading import MAX_FILE_BYTES, builtin_study_names, load_study, read_study_file, study_from_dict
from supermask.study.overrides import apply_overrides, set_key
from supermask.study.yaml import MAX_ERRORS, MAX_VALUES, from_python, locate, parse_yaml, to_python

STUDY = """\
title: mine
dataset: mnist
seeds: 3
train:
  lr: 1e-3
  epochs: 4
prune: {levels: 2, rates: {hidden: 0.3}}
treatments:
  - criterion: [large_final, random]
    mask0: [zero, freeze_init]
  - name: control
    criterion: random
    mask1: reinit
reference: {name: control}
scales:
  small:
    dataset: digits
    train: {epochs: 1}
    prune.levels: 1
  laptop: {train.epochs: 2}
  wrong:
    train.epoch: 2
    prune.rates.hidden: 1.2
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("60", 60),
        ("+07", 7),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2019-05-03", "2019-05-03"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("-.inf", -math.inf),
        ("0x10", "0x10"),
        ("{a: [1, {b: x}]}", {"a": [1, {"b": "x"}]}),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = to_python(parse_yaml(text, "x"))
    assert read == value
    assert type(read) is type(value)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=12)
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(DATA, st.sampled_from([None, 2]))
@settings(deadline=None, max_examples=60)
def test_json_is_yaml(data: Any, indent: int | None) -> None:
    assert to_python(parse_yaml(json.dumps(data, ensure_ascii=False, indent=indent), "x")) == data


@given(st.text(alphabet="a1:-[]{}&*!|>'\"#%@ ,?\n\t\x00é", max_size=60))
@settings(deadline=None, max_examples=80)
def test_any_text_gives_a_tree_or_a_user_error(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except UserError as error:
        assert str(error).startswith("x, line ")


def test_every_value_has_its_line() -> None:
    root = parse_yaml(STUDY, "mine.yaml")
    lines = {
        ("train",): 4,
        ("train", "epochs"): 6,
        ("prune", "rates", "hidden"): 7,
        ("treatments", 0, "mask0"): 10,
        ("treatments", 1): 11,
        ("treatments", 1, "mask1"): 13,
        ("scales", "wrong", "prune.rates.hidden"): 23,
        ("train", "no such key"): 4,
    }
    assert {path: locate(root, path) for path in lines} == {p: f"mine.yaml, line {n}" for p, n in lines.items()}


NOT_A_STUDY = {
    "seeds: 3\ntrain: {}\nseeds: 4\n": "mine.yaml, line 3: the key 'seeds' is given twice; first at mine.yaml, line 1.",
    "treatments: [{mask0: zero, mask0: zero}]": "mine.yaml, line 1: the key 'mask0' is given twice",
    "a: !!python/object/apply:os.system [ls]": "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is",
    "a: !include x.yaml": "the tag '!include' is not allowed",
    "": "mine.yaml: the file is empty; a study needs treatments",
    "# only a comment\n": "mine.yaml: the file is empty",
    "- large_final\n": "mine.yaml: not a map of keys and values, such as dataset: mnist, but a list.",
    "large_final": "mine.yaml: not a map of keys and values, such as dataset: mnist, but 'large_final'.",
    "a: 1\n---\nb: 2\n": "mine.yaml, line 2: a second document begins here",
    "1: x": "mine.yaml, line 1: the key 1 is not text",
    "? [a, b]\n: x": "mine.yaml, line 1: the key a list is not text",
    "a: &a [*a]": "mine.yaml, line 1: the alias *a stands before or inside its anchor.",
    "seeds: 1\ntrain: {lr: 1\n": "mine.yaml, line 3: not YAML: expected ',' or '}', but got '<stream end>'"
    " (while parsing a flow mapping of line 2).",
    "seeds: 1\n\ttrain: 2\n": "mine.yaml, line 2: not YAML: ",
    "a: 1\nb: \x00": "mine.yaml, line 2: not YAML: the character U+0000 is not allowed.",
    "[" * 100_000: "mine.yaml, line 1: nested deeper than 20 levels",
    "- 1\n" * (MAX_VALUES + 1): "mine.yaml, line 20000: more than 20,000 values",
}


@pytest.mark.parametrize("text", NOT_A_STUDY, ids=lambda text: text[:24])
def test_text_that_is_not_a_study_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    assert NOT_A_STUDY[text] in refusal(text, tmp_path)


def test_aliases_are_expanded_up_to_a_limit() -> None:
    assert to_python(parse_yaml("a: &x {b: [1]}\nc: *x\n", "x")) == {"a": {"b": [1]}, "c": {"b": [1]}}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 60))
    with pytest.raises(UserError, match="x, line 6: more than 20,000 values, aliases expanded"):
        parse_yaml(bomb, "x")


LONG = 290_000
SLOW_TEXTS = {
    "!": "!" * LONG,
    "key": "a: " + "!" * LONG,
    "named": "!" + "a" * LONG,
    "verbatim": "!<" + "a" * LONG,
    "escaped": "!" + "%41" * (LONG // 3),
    "handles": "!a" * (LONG // 2),
}


@pytest.mark.parametrize("text", SLOW_TEXTS.values(), ids=SLOW_TEXTS)
def test_long_tags_are_refused_without_being_scanned(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to scan a tag is quadratic in its length: 24 s for 1 MB."""
    monkeypatch.setattr("ruamel.yaml.scanner.Scanner.scan_tag", None)
    with pytest.raises(UserError, match=r"^x, line 1: not YAML: a tag of more than 200 characters, and study files"):
        parse_yaml(text, "x")


MANY_VALUES = "more than 20,000 values, aliases expanded."
HOSTILE_FILES = {
    "open lists": ("[" * LONG, "nested deeper than 20 levels"),
    "open maps": ("{a: " * (LONG // 4), "nested deeper than 20 levels"),
    "list in one line": ("a: [" + "1," * (LONG // 2), MANY_VALUES),
    "dashes": ("- - - - - 1\n" * (LONG // 12), MANY_VALUES),
    "keys": ("".join(f"k{i}: 1\n" for i in range(LONG // 10)), MANY_VALUES),
    "anchors": ("".join(f"- &a{i} 1\n" for i in range(LONG // 12)), MANY_VALUES),
    "aliases": ("a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\nb: [" + "*a," * (LONG // 4), MANY_VALUES),
    "a long scalar": ("title: " + "x" * LONG, "there are none; a study needs at least one"),
    "a long number": ("seeds: " + "1" * LONG, "seeds: inf is not a number of seeds"),
    "a folded scalar": ("title: >\n" + " x\n" * (LONG // 3), "there are none; a study needs at least one"),
    "blank lines": ("\n" * LONG, "the file is empty"),
    "products": ("treatments: [{" + ", ".join(f"k{i}: [1, 2, 3]" for i in range(3000)) + "}]", "more than 10,000"),
    "unknown keys": ("".join(f"key{i}: 1\n" for i in range(9000)), "There are more errors; mend these first."),
    "unknown keys of treatments": (
        "treatments:\n" + "".join(f"- {{bad{i}: 1}}\n" for i in range(5000)),
        "There are more errors; mend these first.",
    ),
    "functions": (
        "treatments: [{criterion: [" + ",".join(f"m{i}:f" for i in range(9000)) + "]}]",
        "mine.yaml, line 1: treatments[0].criterion: more than 100 functions by import path.",
    ),
}
"""Shape -> a file of at most 300,000 bytes, each read in under 1 s of CPU time, and a part of the message."""


@pytest.mark.slow
@pytest.mark.parametrize("shape", HOSTILE_FILES)
def test_hostile_files_are_refused_within_bounds(shape: str, tmp_path: Path) -> None:
    text, message = HOSTILE_FILES[shape]
    assert len(text) <= MAX_FILE_BYTES
    found = refusal(text, tmp_path)
    assert message in found
    assert found.count("\n") <= MAX_ERRORS


def test_a_version_of_many_digits_is_refused() -> None:
    with pytest.raises(UserError, match=r"^x, line 1: not YAML: unreadable numbers in the first lines"):
        parse_yaml("%YAML " + "1" * 5000 + ".1\n---\na: 1\n", "x")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"title: \xff\n", "mine.yaml, line 1: not UTF-8 text; save the file in UTF-8."),
        ("seeds: 1\n".encode("utf-16"), "not UTF-8 text"),
        (b"#" * (MAX_FILE_BYTES + 1), "mine.yaml: larger than 300,000 bytes"),
    ],
)
def test_files_that_are_not_utf8_text_are_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        load_study(path)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    assert load_study(path).title == "mine"


def test_unknown_studies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    messages = {
        "mask-criterai": "study 'mask-criterai' is not known; did you mean 'mask-criteria'? shipped: "
        + ", ".join(builtin_study_names())
        + "; or give a path to a .yaml file.",
        "": "study '' is not known; shipped: ",
        "a\0b": "study 'a\\x00b' is not known; shipped: ",
        "nowhere.yaml": "study file 'nowhere.yaml': there is no such file.",
        "some/where": "study file 'some/where': there is no such file.",
        "a/\0": "study file 'a/\\x00' cannot be read: embedded null byte.",
        "folder": "study file 'folder' cannot be read: Is a directory.",
        "x" * 3000 + ".yaml": "cannot be read: File name too long.",
    }
    for name, message in messages.items():
        with pytest.raises(UserError) as caught:
            load_study(name)
        assert message in str(caught.value)


def test_a_file_is_found_by_path_suffix_or_existence(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.parent)
    (study.parent / "plain").write_text(STUDY)
    (study.parent / "mask-criteria").write_text(STUDY)
    assert load_study("./mine.yaml").title == load_study("mine.yaml").title == load_study("plain").title == "mine"
    assert load_study(study).name == "mine"
    assert load_study("mask-criteria").title != "mine", "a built-in name has priority"
    assert load_study("./mask-criteria").title == "mine"


def test_a_hostile_file_name_is_sanitized(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m..;$(x)\n.yaml"
    path.write_text(STUDY)
    assert load_study(path).name == "?[31m..;$(x)?"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match=r"^\?\[31m..;\$\(x\)\?.yaml, line 2: the key 'a'"):
        load_study(path)


def test_priority_is_overrides_then_scale_then_file_then_defaults(study: Path) -> None:
    path = str(study)
    assert load_study(path).train.model_dump(include={"lr", "epochs", "batch_size"}) == {
        "lr": 1e-3,
        "epochs": 4.0,
        "batch_size": 60,
    }
    small = load_study(path, ["scale=small"])
    assert (small.dataset, small.train.lr, small.train.epochs, small.prune.levels) == ("digits", 1e-3, 1.0, 1)
    both = load_study(path, ["dataset=cifar10", "scale=small", "train.epochs=0.5", "seeds=[7, 3]"])
    assert (both.dataset, both.train.epochs, both.prune.levels, both.seeds) == ("cifar10", 0.5, 1, (7, 3))


def test_the_last_of_two_overrides_wins(study: Path) -> None:
    assert load_study(study, ["train.lr=1", "train.lr=2"]).train.lr == 2
    assert load_study(study, ["scale=small", "scale=laptop"]).train.epochs == 2


def test_maps_are_merged_lists_and_the_reference_replaced(study: Path) -> None:
    merged = load_study(study, ["train={epochs: 9}", "prune.rates.output=0.5", "prune={rates: {conv: 0.4}}"])
    assert (merged.train.lr, merged.train.epochs) == (1e-3, 9.0)
    assert merged.prune.rates.model_dump() == {"conv": 0.4, "hidden": 0.3, "output": 0.5, "global_": 0.2}
    replaced = load_study(study, ["treatments=[{}, {mask1: reinit}]", "reference={mask1: reinit}"])
    assert [t.label for t in replaced.treatments] == ["rewind", "reinit"]
    assert replaced.reference == "reinit"


@pytest.mark.parametrize("key", ["treatments.1.mask0", "treatments[1].mask0"])
def test_an_index_counts_the_items_as_written(study: Path, key: str) -> None:
    control = load_study(study, [f"{key}=freeze_final"]).reference_treatment
    assert (control.label, control.mask0) == ("control", "freeze_final")


WRONG_OVERRIDES = {
    "train.epoch=3": "train has no key 'epoch'; did you mean 'epochs'? Allowed: optimizer, lr, ",
    "epochs=3": "a study has no key 'epochs'; did you mean 'train.epochs'? Allowed: title, network, ",
    "prune.rates.hidden=1.2": "prune.rates.hidden: 1.2 is not a prune rate: it is the share of the surviving weights "
    "removed per level, at least 0 (never pruned) and below 1.",
    "prune.rates.fc1.weight=0.5": "prune.rates.fc1 has a map, not a number; a name with dots is one key: write "
    "'prune.rates={fc1.weight: 0.5}'.",
    "prune.rates.global=0": "prune.rates.global: 0 is not a prune rate",
    "seeds=0": "seeds: 0 is not a number of seeds",
    "scale=labtop": "scale 'labtop' is not known; did you mean 'laptop'? this study has: small, laptop, wrong.",
    "scale=": "scale '' is not known; this study has: small, laptop, wrong.",
    "train.lr": "not of the form KEY=VALUE, such as train.epochs=3.",
    "=3": "not of the form KEY=VALUE",
    "train=fast": "train: 'fast' is not a map of keys and values.",
    "train.lr.x=3": "train.lr is 0.001, which has no key 'x'.",
    "treatments.2.mask0=zero": "'2' is not an item of treatments: as it is written, it has items 0 to 1.",
    "treatments.-1.mask0=zero": "'-1' is not an item of treatments",
    "treatments.mask0=zero": "'mask0' is not an item of treatments",
    "treatments.0.mask0=zro": "treatments[0].mask0: 'zro' is not a mask-0 action; did you mean 'zero'? Allowed: zero,",
    "treatments=[]": "treatments: there are none; a study needs at least one",
    "treatments=3": "treatments: 3 is not a list of them",
    "scales.small.seeds=3": "scales cannot be set here",
    "seeds=[1": "not YAML: ",
    "train.lr=!!float 3": "the tag ",
    "reference={name: nobody}": "reference: no treatment has {name: 'nobody'}; the study's treatments are: ",
    "reference.mask1=[rewind]": "reference: no treatment has ",
    "prune=": "prune: null is not a map of keys and values.",
}


def test_other_objects_than_studies_and_a_text_of_overrides_are_refused(study: Path) -> None:
    for value in (3, None, [str(study)]):
        with pytest.raises(UserError, match="is not a study: give a name, the path of a file, a dict or a Study"):
            load_study(value)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"overrides are a list of texts, such as \['train.lr=1'\]"):
        load_study(study, "train.lr=1")


def test_the_repr_of_a_study_names_its_networks() -> None:
    study = study_from_dict({"seeds": 1, "treatments": [{"network": ["conv2", "fc-8"]}]})
    assert repr(study) == "Study('study', conv2, fc-8 on digits, 2 treatments, 1 seed)"


def test_a_list_of_one_item_is_not_said_to_have_items_0_to_0(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("treatments: [{}]")
    with pytest.raises(UserError, match=r"'1' is not an item of treatments: as it is written, it has one item, 0\."):
        load_study(path, ["treatments.1.mask0=zero"])


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_an_error_in_an_override_names_the_override(study: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(study, [override])
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"override '{override}': ")
    assert WRONG_OVERRIDES[override] in first


def test_an_error_in_a_scale_names_its_line(study: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_study(study, ["scale=wrong"])
    lines = str(caught.value).splitlines()
    assert [line[:42] for line in lines] == [
        "mine.yaml, line 22: train has no key 'epoc",
        "mine.yaml, line 23: prune.rates.hidden: 1.",
    ]
    assert load_study(study, ["scale=small"]), "errors in other scales do not matter"


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ("[small]", "mine.yaml, line 2: scales: a list is not a map, such as scales: {small: {train.epochs: 3}}."),
        ("{small: 3}", "mine.yaml, line 2: scale 'small': 3 is not a map, such as {train.epochs: 3}."),
    ],
)
def test_scales_are_maps(scales: str, message: str, tmp_path: Path) -> None:
    assert refusal(f"treatments: [{{}}]\nscales: {scales}\n", tmp_path) == message
    assert "is not a map" in refusal("treatments: [{}]\nscales: {s: {}, small: 3}\n", tmp_path, "scale=small")


def test_a_scale_cannot_choose_or_change_scales(tmp_path: Path) -> None:
    text = "treatments: [{}]\nscales:\n  a: {scale: b}\n  b: {}\n"
    assert refusal(text, tmp_path, "scale=a").startswith("mine.yaml, line 3: scale cannot be set here")
    assert "this study has no scales" in refusal("treatments: [{}]", tmp_path, "scale=a")


def test_all_errors_are_reported_at_once_with_their_locations(study: Path) -> None:
    study.write_text(STUDY.replace("seeds: 3", "sedes: 3").replace("[zero, freeze_init]", "[zero, freez_init]"))
    with pytest.raises(UserError) as caught:
        load_study(study, ["train.lr=-1"])
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        "override 'train.lr=-1'",
        "mine.yaml, line 3",
        "mine.yaml, line 10",
    ]


def slow_put(data: Any, path: list[str], new: Any) -> Any:
    """Set a key of plain data in place: the oracle of `set_key`."""
    if not path:
        if isinstance(data, dict) and isinstance(new, dict):
            for key, value in new.items():
                data[key] = slow_put(data[key], [], value) if key in data else copy.deepcopy(value)
            return data
        return copy.deepcopy(new)
    if data is None:
        return {path[0]: slow_put(None, path[1:], new)}
    data[path[0]] = slow_put(data.get(path[0]), path[1:], new)
    return data


KEYS = st.sampled_from("abc")
MAPS = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@pytest.mark.slow
@given(st.dictionaries(KEYS, MAPS, max_size=3), st.lists(KEYS, min_size=1, max_size=3), MAPS)
@settings(deadline=None, max_examples=80)
def test_set_key_equals_a_dict_update_and_keeps_the_tree(data: Any, path: list[str], new: Any) -> None:
    root = from_python(data, "file")
    try:
        expected = slow_put(copy.deepcopy(data), path, new)
    except (AttributeError, TypeError):
        with pytest.raises(UserError, match="has no key"):
            set_key(root, ".".join(path), from_python(new, "override"))
        return
    assert to_python(set_key(root, ".".join(path), from_python(new, "override"))) == expected
    assert to_python(root) == data


def test_overrides_do_not_change_the_tree(study: Path) -> None:
    root = read_study_file(study)
    before = copy.deepcopy(to_python(root))
    apply_overrides(root, ["scale=small", "train.lr=3", "treatments.0.mask0=zero"])
    assert to_python(root) == before


def test_quoted_values_are_one_short_line() -> None:
    assert [quote(v) for v in (None, True, 1.5, "a\nb")] == ["null", "true", "1.5", "'a\\nb'"]
    assert len(quote("x" * 1000)) == 80
    assert quote(10**5000) == "a number of many digits"
