"""Names of treatments on both sides of a comparison: how they are mapped, quoted and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.compared_results import ACCURACY, LABELS, our_rows, write_study

from supermask.analysis.comparisons import (
    OtherResult,
    OtherResults,
    TableColumns,
    compare_results,
    parse_name_pairs,
    read_csv_results,
)
from supermask.analysis.comparisons.formats import format_text
from supermask.core.errors import UserError


@pytest.mark.parametrize("seeds", [("0", "1"), (None, None)])
@pytest.mark.parametrize(
    ("treatments", "names", "message"),
    [
        (("large_final", "magnitude"), {"magnitude": "large_final"}, "'large_final' and 'magnitude' are both"),
        (("a", "b"), {"a": "random", "b": "random"}, "'a' and 'b' are both 'random' here"),
        (("a", "dense"), {"a": "dense"}, "'a' and 'dense' are both 'dense' here"),
        # Labels of one run that belongs to two treatments, as `supermask table` joins them.
        (("large_final | random", "random"), {}, "'large_final | random' and 'random' are both 'random' here"),
    ],
)
def test_two_treatments_of_theirs_are_not_one_of_ours(
    treatments: tuple[str, str], names: dict[str, str], message: str, seeds: tuple[str | None, ...]
) -> None:
    level = 0 if "dense" in treatments else 1
    others = [OtherResult(name, level, 0.6**level, seed, 95.0) for name in treatments for seed in seeds]
    for by_density in (False, True):
        with pytest.raises(UserError) as error:
            compare_results(
                our_rows(), OtherResults("t", tuple(others)), ACCURACY, LABELS, "study", None, names, by_density
            )
        assert message in str(error.value) and "--map" in str(error.value)


def test_joined_labels_at_one_level_and_single_ones_at_another_are_one_treatment() -> None:
    first = [OtherResult("large_final | random", 1, None, str(seed), 95.0) for seed in range(3)]
    second = [OtherResult(label, 2, None, str(seed), 95.0) for label in LABELS for seed in range(3)]
    result = compare_results(our_rows(), OtherResults("t", (*first, *second)), ACCURACY, LABELS, "study")
    assert [(cell.treatment, cell.level, cell.other_n) for cell in result.cells] == [
        (label, level, 3) for label in LABELS for level in (1, 2)
    ]


def test_treatments_are_mapped_and_left_out() -> None:
    others = OtherResults(
        "t", tuple(OtherResult(name, 1, None, None, 95.0) for name in ("magnitude", "random", "extra"))
    )
    names = {"magnitude": "large_final", "extra": ""}
    result = compare_results(our_rows(), others, ACCURACY, LABELS, "study", names=names)
    assert [cell.treatment for cell in result.cells] == ["large_final", "random"]
    # One run on their side: shown, not tested.
    assert result.total.tested == 0
    assert "not tested" in format_text(result)


@pytest.mark.parametrize(
    ("names", "treatment", "message"),
    [
        ({}, "randon", "treatment 'randon' is unknown in this study; did you mean 'random'?"),
        ({}, "magnitude", "did you mean 'large_final'?"),
        ({"randon": "random"}, "random", "has no treatment 'randon'; did you mean 'random'?"),
        ({"random": "randon"}, "random", "'randon' is not a treatment of this study; did you mean 'random'?"),
        ({"random": ""}, "random", "leaves out every treatment"),
    ],
)
def test_unknown_treatments_are_refused_with_the_nearest_name(
    names: dict[str, str], treatment: str, message: str
) -> None:
    others = OtherResults("theirs.csv", (OtherResult(treatment, 1, None, None, 95.0),))
    with pytest.raises(UserError) as error:
        compare_results(our_rows(), others, ACCURACY, LABELS, "study", names=names)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["a\x1b[31m\nb", "x" * 5000, "\u202e" * 90, "it's", "a\x9bb"])
def test_names_of_theirs_are_quoted_and_cut_in_messages(tmp_path: Path, name: str) -> None:
    def message(name: str, names: dict[str, str], ours: list[str] = LABELS) -> str:
        others = OtherResults(f"{name[:40]}.csv", (OtherResult(name, 9, None, None, 95.0),))
        with pytest.raises(UserError) as error:
            compare_results(our_rows(), others, ACCURACY, ours, "study", names=names)
        return str(error.value)

    texts = [
        message(name, {}),
        message(name, {name + "y": "random"}),
        message(name, {name: name + "y"}),
        message(name, {name: name + "y"}, [*LABELS, name]),
        message(name, {name: "random"}),
        message(name, {name: ""}),
    ]
    header = f'treatment,level,"{name}"\n'
    path = write_study(
        tmp_path, f'{header}"{name}",1,95\n"{name}",1,"{name}"\n', f"{name[:9].replace(chr(10), '')}.csv"
    )
    for columns in (TableColumns(), TableColumns(value=name), TableColumns(value=name + "y")):
        with pytest.raises(UserError) as error:
            read_csv_results(path, columns, ACCURACY)
        texts.append(str(error.value))
    for text in texts:
        assert len(text) < 700, text
        assert not set(text) & {chr(code) for code in (*range(32), *range(127, 160))}, text


def test_messages_show_a_name_as_a_shell_takes_it() -> None:
    for name, shown in (
        ("it's", """--map 'it'"'"'s=OURS'"""),
        ("plain", "--map plain=OURS"),
        ("a\nb", "--map THEIRS=OURS"),
    ):
        others = OtherResults("theirs.csv", (OtherResult(name, 1, None, None, 95.0),))
        with pytest.raises(UserError) as error:
            compare_results(our_rows(), others, ACCURACY, LABELS, "study")
        assert shown in str(error.value)


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        (["magnitude=large_final"], {"magnitude": "large_final"}),
        (["fast=lr=0.1"], {"fast": "lr=0.1"}),
        (["lr=1=lr=0.1", "lottery="], {"lr=1": "lr=0.1", "lottery": ""}),
        (["lr=1="], {"lr=1": ""}),
        # Nothing of it exists: the last one separates, and `compare_results` names what is unknown.
        (["a=b=c"], {"a=b": "c"}),
        (["fast=b=c"], {"fast": "b=c"}),
        (["a=b=lr=0.1"], {"a=b": "lr=0.1"}),
    ],
)
def test_a_pair_is_split_where_both_names_exist(pairs: list[str], names: dict[str, str]) -> None:
    theirs, ours = ["magnitude", "fast", "lr=1", "lottery"], ["dense", "large_final", "lr=0.1"]
    assert parse_name_pairs(pairs, theirs, ours) == names


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["magnitude"], "--map 'magnitude': give THEIRS=OURS"),
        (["=large_final"], "--map '=large_final': give THEIRS=OURS"),
        (["a=x", "a="], "--map names 'a' twice"),
        (["a=b=x"], "--map 'a=b=x' can be read as 'a' to 'b=x' and as 'a=b' to 'x'"),
    ],
)
def test_pairs_that_cannot_be_split_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_name_pairs(pairs, ["a", "a=b"], ["x", "b=x"])
    assert message in str(error.value)
