"""Golden outputs: a SHA-256 of everything that the command line prints and stores, to show that no number changed.

    python benchmarks/golden_outputs.py record before.json --cache measured --keep raw-before
    python benchmarks/golden_outputs.py compare before.json after.json

Only the command is called, no module of the package, because module names change. The program under test is the one
installed for the Python that runs this file: run it with the `.venv/bin/python` of the checkout to test.

An item is `ENGINE/KIND/NAME/PART`. Its parts: `numbers` (numbers, headers, stored keys, ids, enumerations), `tensors`
(names, dtypes, shapes, bytes), `labels` (names of treatments) and `words` (sentences, titles, texts of figures).
Words may change: `compare` counts them, and fails if any other part differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENGINES = {
    "reference": ("--engine", "reference", "--workers", "2"),
    "sparse": ("--engine", "sparse", "--workers", "2"),
    # A fixed size: the default is measured, and the bits of a stacked run may depend on the stack size.
    "stacked": ("--engine", "stacked", "--workers", "2", "--stack", "8"),
}
"""Engine -> its options of `supermask run`."""

SCALE = "scale=digits"

CONVOLUTIONAL = ("network=conv2", "seeds=[0]", "prune.levels=1", "train.epochs=1", "learn.epochs=1", "learn.samples=2")
"""Settings of two short additional studies with convolutions: `scale=digits` has only fully connected networks."""

EXCLUDED = {
    "seconds": "how long it took",
    "environment": "versions, processor, threads, costs, and the fingerprint over them",
    "torch": "a version, in tables",
    "numpy": "a version",
    "python": "a version",
    "supermask_version": "a version; where it is spelled `supermask`, the text is dropped and the dictionary kept",
    "seal": "a hash over a whole document, environment and seconds in it",
    "sha256": "of a file's bytes; the tensors in it are hashed by themselves",
    "bytes": "of a file; its header may be written differently",
}
"""Keys and columns that are excluded from all hashes, with the reason."""

WORDS = {
    "engine_reason": "a run's facts: why this engine",
    "note": "facts, claims, tables",
    "data_note": "tables",
    "data_notes": "claims",
    "left_out": "tables of figures: runs that are in no mean, in a sentence",
    "statement": "claims",
    "sentence": "claims",
    "source": "claims",
    "paper_text": "Table 1: the paper's value as it is shown",
    "title": "study files and figures",
    "text": "figures of the report: numbers as they are shown, and titles",
    "hovertext": "figures of the report",
    "ticktext": "figures of the report",
    "label": "figures of the report",
    "legendgroup": "figures of the report",
    "uirevision": "figures of the report",
    "head": "tables of the report: the header that is shown; the column's name is in the numbers",
}
"""Keys and columns whose text may change, with their place. Numbers under these keys are still compared."""

LABELS = {
    "treatment": "tables and claims",
    "reference": "tables and claims",
    "name": "study files; layers of a ticket",
    "column": "Table 1: its columns; which of a table's columns is shown",
    "missing": "claims: treatments that are not there",
}
"""Keys and columns that hold names of treatments."""

COSTS: dict[str, dict[str, Any]] = {
    "walks": {
        "weight": 3.2,
        "inner": 4.4,
        "pixel": 3.1,
        "held": 0.62,
        "whole": 4.8,
        "learnt": 2.4,
        "pixel_forward": 2.4,
        "whole_forward": 2.4,
    },
    "layers": {
        "filter_sums": {"sparse": 0.023, "dense": 0.011},
        "filter_products": {"sparse": 0.032, "dense": 0.012},
        "unit_sums": {"sparse": 0.023, "dense": 0.018},
        "unit_products": {"sparse": 0.045, "dense": 0.024},
    },
}
"""Fixed costs in place of those that the sparse engine measures per machine and set of kernel sources. Costs choose the
kernels and so change the last bits; a moved kernel would be measured again and could give other bits."""

CASES = {
    "dense": ("mask-criteria", {"level": "0"}),
    "large-final": ("mask-criteria", {"criterion": "large_final"}),
    "random": ("mask-criteria", {"criterion": "random"}),
    "signed-constant": ("mask-1-actions", {"mask1": "signed_constant"}),
    "reinit": ("mask-1-actions", {"mask1": "reinit"}),
    "freeze-init": ("mask-0-actions", {"mask0": "freeze_init"}),
    "zero-if-shrunk": ("mask-0-actions", {"mask0": "zero_if_shrunk"}),
    "learned": ("learned-supermasks", {"supermask": "bernoulli", "base": "init", "rescaled": "true"}),
    "learned-constant": ("learned-supermasks", {"supermask": "bernoulli", "base": "signed_constant"}),
    "signed": ("learned-supermasks", {"supermask": "signed"}),
    "conv2": ("mask-criteria", {"network": "conv2", "criterion": "large_final"}),
}
"""Ticket -> its study, and column values of its run; seed 0, the last level with these values."""

UNTRAINED = ("large-final", "signed-constant", "freeze-init")
"""Tickets that are packed with their initial weights in addition."""


def main() -> int:
    """Return the exit status: 0; 1 if `compare` found a difference; 2 if the reader has to fix something first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run everything and write one hash per item")
    recording.add_argument("out", type=Path, help="JSON file to write")
    recording.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    recording.add_argument("--work", type=Path, help="folder for stores and outputs [default: a temporary one]")
    cache = "folder of measurements, the same for two recordings on one machine [default: in the folder of the stores]"
    recording.add_argument("--cache", type=Path, help=cache)
    recording.add_argument("--keep", type=Path, help="folder for the hashed text, for `diff -r`")
    comparing = commands.add_parser("compare", help="compare two recordings; exit status 1 if a number differs")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--engines", nargs="+", choices=list(ENGINES), help="compare only these engines")
    comparing.add_argument("--labels-may-change", action="store_true", help="count names of treatments as words")
    options = parser.parse_args()
    try:
        if options.command == "compare":
            return compare(options.before, options.after, options.engines or list(ENGINES), options.labels_may_change)
        if options.work is not None:
            record(options.out, options.engines, options.work.resolve(), options.cache, options.keep)
        else:
            with tempfile.TemporaryDirectory(prefix="golden-") as folder:
                record(options.out, options.engines, Path(folder), options.cache, options.keep)
    except ToDoError as error:
        print(f"golden_outputs: {error}", file=sys.stderr)
        return 2
    return 0


class ToDoError(Exception):
    """A reason why a recording cannot be made or compared; the message says what to do."""


# --- Text into parts ---


@dataclass
class Parts:
    """Lines of text to hash, by part."""

    numbers: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        """Return part -> text, without empty parts."""
        return {part: "".join(f"{line}\n" for line in lines) for part, lines in vars(self).items() if lines}


def json_parts(data: Any, figure: bool = False) -> Parts:
    """Return the parts of JSON data; placeholders replace texts in `numbers`. `figure`: labels count as words."""
    parts = Parts()
    worded, labeled = ({**WORDS, **LABELS}, {}) if figure else (WORDS, LABELS)

    def reduced(value: Any, key: str, path: str) -> Any:
        if isinstance(value, dict):
            return {k: reduced(v, k, f"{path}.{k}") for k, v in sorted(value.items()) if not _excluded(k, v)}
        if isinstance(value, list):
            return [reduced(v, key, f"{path}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, str) and key in worded:
            parts.words.append(f"{path}: {value!r}")
            return "(words)"
        if isinstance(value, str) and key in labeled:
            parts.labels.append(f"{path}: {value!r}")
            return "(label)"
        return value

    parts.numbers = json.dumps(reduced(data, "", ""), indent=1, sort_keys=True).splitlines()
    return parts


def table_parts(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Parts:
    """Return one line per row, the header first."""
    here = [(i, name) for i, name in enumerate(columns) if name not in EXCLUDED]

    def lines(names: dict[str, str] | None) -> list[str]:
        chosen = [(i, name) for i, name in here if name in (names or {})]
        if names is None:
            chosen = [(i, name) for i, name in here if name not in WORDS and name not in LABELS]
        header = [name for _, name in (here if names is None else chosen)]
        cells = ([row[i] for i, _ in chosen] for row in rows)
        return [json.dumps(line) for line in (header, *cells)] if chosen else []

    return Parts(lines(None), lines(LABELS), lines(WORDS))


def csv_parts(text: str) -> Parts:
    """Return the parts of a CSV text."""
    columns, *rows = list(csv.reader(io.StringIO(text)))
    return table_parts(columns, rows)


def _excluded(key: str, value: Any) -> bool:
    """Return whether a key is excluded. `supermask` is a version in a ticket, a dict in a run."""
    return key in EXCLUDED or (key == "supermask" and isinstance(value, str))


def tensors_of(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return one line per tensor of a safetensors file (name, dtype, shape, hash of its bytes), and its metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = header.pop("__metadata__", {})
    lines = []
    for name, tensor in sorted(header.items()):
        first, last = tensor["data_offsets"]
        found = hashlib.sha256(content[start + first : start + last]).hexdigest()
        lines.append(f"{name} {tensor['dtype']} {tensor['shape']} {found}")
    return lines, about


def report_parts(html: str) -> Iterator[tuple[str, Parts]]:
    """Yield name and parts of every figure, table and study file in a report. Tables are hashed as unpacked rows."""
    blocks = re.findall(r'<script type="application/json" id="([^"]*)">(.*?)</script>', html, re.DOTALL)
    if not blocks:
        raise ToDoError("the report has no <script type=application/json id=...> blocks: adapt `report_parts` to it.")
    for name, text in blocks:
        data = json.loads(text)
        if "columns" not in data:
            yield name, json_parts(data, figure="layout" in data)
            continue
        packed, count = data.pop("columns"), data["rows"]
        columns = {column: _unpacked(column, packed, count) for column in packed}
        parts, about = table_parts(list(columns), list(zip(*columns.values(), strict=True))), json_parts(data)
        yield name, Parts(*(vars(parts)[part] + vars(about)[part] for part in vars(parts)))


def _unpacked(name: str, packed: dict[str, dict[str, Any]], count: int) -> list[Any]:
    """Return a column of a report's table, one value per row, from any of its packed forms."""
    column = packed[name]
    if "all" in column:
        return [column["all"]] * count
    if "of" in column:
        at = column["at"] if "at" in column else packed[column["as"]]["at"]
        return [column["of"][i] for i in at]
    if "like" not in column:
        return list(column["values"])
    values = list(_unpacked(column["like"], packed, count))
    for row, value in zip(column["rows"], column["values"], strict=True):
        values[row] = value
    return values


# --- The command ---


@dataclass(frozen=True)
class Program:
    """The command under test, in a folder."""

    work: Path
    cache: Path
    """Folder of its cached measurements: costs of kernels, convolution algorithms of the stacked engine."""

    def ask(self, *arguments: str, refusal: bool = False) -> tuple[int, str]:
        """Run the command; return exit status and output. `refusal`: exit status 2 is accepted, with its message."""
        here = Path(sys.executable).parent / "supermask"
        command = [str(here)] if here.exists() else [sys.executable, "-m", "supermask"]
        ours = ("SUPERMASK_STORE", "SUPERMASK_DATA", "PYTHONPATH")
        around = {k: v for k, v in os.environ.items() if k not in ours}
        # Measured costs are read from the cache folder, where `pin_costs` replaces them.
        around |= {"SUPERMASK_CACHE": str(self.cache), "SUPERMASK_MEASURE_COSTS": "1"}
        done = subprocess.run(
            [*command, *arguments], cwd=self.work, env=around, capture_output=True, text=True, check=False
        )
        if done.returncode == 2 and refusal:
            return 2, done.stderr
        if done.returncode:
            told = (done.stderr or done.stdout).strip()[-2000:]
            raise ToDoError(f"`supermask {' '.join(arguments)}` ended with {done.returncode}. Fix it first:\n{told}")
        return 0, done.stdout

    def studies(self) -> list[str]:
        """Return the names of all shipped studies."""
        return [line.split()[0] for line in self.ask("studies")[1].splitlines() if line.strip()]

    def pin_costs(self) -> None:
        """Let the sparse engine measure its costs in a short run, then replace them by `COSTS`."""
        short = ("seeds=[0]", "prune.levels=1", "train.epochs=1")
        self.ask("run", "mask-criteria", SCALE, *short, "--engine", "sparse", "--store", str(self.work / "warm-up"))
        files = self._costs()
        if not files:
            raise ToDoError(f"the sparse engine kept no costs in {self.cache / 'costs'}: adapt `pin_costs` to where.")
        for path in files:
            if _shape(json.loads(path.read_text())) != _shape(COSTS):
                raise ToDoError(f"the costs in {path} have other keys than `COSTS`: adapt `COSTS`, numbers unchanged.")
            path.write_text(json.dumps(COSTS))

    def check_costs(self) -> None:
        """Raise ToDoError if the sparse engine measured its costs again: its bits may then depend on other costs."""
        if any(json.loads(path.read_text()) != COSTS for path in self._costs()):
            raise ToDoError("the sparse engine did not go by the pinned `COSTS`: adapt `pin_costs`, and record again.")

    def _costs(self) -> list[Path]:
        return sorted((self.cache / "costs").glob("*.json"))


def _shape(data: Any) -> Any:
    return {key: _shape(value) for key, value in data.items()} if isinstance(data, dict) else None


# --- Recording ---


@dataclass
class Recording:
    """Hashes of items and, with `keep`, their text: one file per part for store entries, one file per other item."""

    keep: Path | None
    hashes: dict[str, str] = field(default_factory=dict)
    _lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, engine: str, kind: str, name: str, texts: dict[str, str]) -> None:
        """Hash each part."""
        for part, text in texts.items():
            key = f"{engine}/{kind}/{name}/{part}"
            if key in self.hashes:
                raise ToDoError(f"{key} is there twice: give each item a name of its own.")
            self.hashes[key] = hashlib.sha256(text.encode()).hexdigest()
            if self.keep is None:
                continue
            if kind in ("run", "point"):
                self._lines[f"{engine}/{kind}-{part}.txt"] += [f"{name} {line}" for line in text.splitlines()]
            else:
                self._write(f"{engine}/{kind}/{name}.{part}.txt", text)

    def finish(self, out: Path) -> None:
        """Write the hashes and the collected lines."""
        for name, lines in self._lines.items():
            self._write(name, "".join(f"{line}\n" for line in lines))
        out.write_text(json.dumps(self.hashes, indent=0, sort_keys=True) + "\n")

    def _write(self, name: str, text: str) -> None:
        assert self.keep is not None  # noqa: S101
        path = self.keep / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def record(out: Path, engines: Sequence[str], work: Path, cache: Path | None, keep: Path | None) -> None:
    """Record all outputs of these engines to `out`, with new stores in `work`.

    Two recordings need the same `cache` for equal bits of the stacked engine's convolutions, whose algorithms are
    chosen by measured times.
    """
    for folder in (work, keep):
        if folder is not None and folder.exists() and any(folder.iterdir()):
            raise ToDoError(f"{folder} is not empty: name another folder, or remove it.")
    work.mkdir(parents=True, exist_ok=True)
    program, recording = Program(work, work / "cache" if cache is None else cache.resolve()), Recording(keep)
    print(f"program   beside {sys.executable}", flush=True)
    began = time.perf_counter()
    if "sparse" in engines:
        program.pin_costs()
        print(f"warm-up   {time.perf_counter() - began:.0f} s (compiling, costs pinned)", flush=True)
    for engine in engines:
        start = time.perf_counter()
        store = work / engine
        _train(program, engine, store, recording)
        trained = time.perf_counter()
        _store_items(engine, store, recording)
        _outputs(program, engine, store, recording)
        told = time.perf_counter()
        print(f"{engine}: trained {trained - start:.0f} s, outputs {told - trained:.0f} s", flush=True)
    if "sparse" in engines:
        program.check_costs()
    recording.finish(out)
    print(f"{out}: {len(recording.hashes):,} items, {time.perf_counter() - began:.0f} s in all")


def _train(program: Program, engine: str, store: Path, recording: Recording) -> None:
    """Train all shipped studies, then two of them with convolutions; if an engine refuses a study, `auto` trains it."""
    shipped = [(study, study, ()) for study in program.studies()]
    more = [(f"{study}-conv2", study, CONVOLUTIONAL) for study in ("mask-criteria", "learned-supermasks")]
    for name, study, settings in (*shipped, *more):
        began = time.perf_counter()
        asked = ("run", study, SCALE, *settings, "--store", str(store))
        status, told = program.ask(*asked, *ENGINES[engine], refusal=True)
        if status:
            recording.add(engine, "refusal", name, {"numbers": f"exit status {status}\n", "words": told})
            program.ask(*asked, "--engine", "auto", "--workers", "2")
        seconds = time.perf_counter() - began
        print(f"  {engine} {name} {seconds:.0f} s{' (refused; auto)' if status else ''}", flush=True)


def _store_items(engine: str, store: Path, recording: Recording) -> None:
    """Record every entry of the store: its record and the tensors of all its files."""
    for kind, folder in (("run", "runs"), ("point", "points")):
        entries = sorted((store / folder).glob("*/*/run.json"), key=lambda path: path.parent.name)
        recording.add(engine, "ids", folder, {"numbers": "".join(f"{path.parent.name}\n" for path in entries)})
        for path in entries:
            texts = json_parts(json.loads(path.read_text())).texts()
            # One line per entry: the file holds the lines of all entries.
            compact = {part: re.sub(r"\n\s*", " ", text).strip() + "\n" for part, text in texts.items()}
            lines = [
                f"{file.stem} {line}"
                for file in sorted(path.parent.glob("*.safetensors"))
                for line in tensors_of(file)[0]
            ]
            tensors = "".join(f"{line}\n" for line in lines)
            recording.add(engine, kind, path.parent.name, {**compact, "tensors": tensors})


def _outputs(program: Program, engine: str, store: Path, recording: Recording) -> None:
    """Record the output of the commands; two run at once, because start-up takes most of the time."""
    at = ("--store", str(store))
    studies = program.studies()
    page, figures, masks = store / "report.html", store / "figures", store / "mask-figures"
    everything = ("query", "SELECT * FROM runs ORDER BY id, study", "--format", "csv")
    with ThreadPoolExecutor(2) as pool:
        drawn = {s: pool.submit(program.ask, "figure", s, SCALE, "--out", str(figures / s), *at) for s in studies}
        tables = {s: pool.submit(program.ask, "table", s, SCALE, "--format", "csv", *at) for s in studies}
        tables |= {
            f"{s}-conv2": pool.submit(program.ask, "table", s, SCALE, *CONVOLUTIONAL, "--format", "csv", *at)
            for s in ("mask-criteria", "learned-supermasks")
        }
        claims = pool.submit(program.ask, "claims", SCALE, "--format", "json", *at)
        report = pool.submit(program.ask, "report", *studies, SCALE, "--out", str(page), *at)
        query = pool.submit(program.ask, *everything, *at)
        texts = {name: answer.result()[1] for name, answer in tables.items()}
        chosen = {case: _chosen(case, texts) for case in CASES}
        wanted = [(case, "final") for case in CASES] + [(case, "start") for case in UNTRAINED]
        tickets = {(case, which): store / f"{case}-{which}.safetensors" for case, which in wanted}
        packed = [
            pool.submit(
                program.ask, "pack", chosen[case], str(path), *(("--weights", which) if which == "start" else ()), *at
            )
            for (case, which), path in tickets.items()
        ]
        # `supermask masks` compares runs of one network only.
        alike = [chosen[case] for case in CASES if case not in ("dense", "conv2")]
        looked = pool.submit(program.ask, "masks", *alike, "--out", str(masks), *at)
        for waited in (*drawn.values(), report, looked, *packed):
            waited.result()
    for name, text in texts.items():
        recording.add(engine, "table", name, csv_parts(text).texts())
    recording.add(engine, "query", "runs", csv_parts(query.result()[1]).texts())
    for claim in json.loads(claims.result()[1]):
        recording.add(engine, "claim", claim["id"], json_parts(claim).texts())
    for folder, kind in ((figures, "figure"), (masks, "masks")):
        for path in sorted(folder.rglob("*.csv")):
            recording.add(engine, kind, path.stem, csv_parts(path.read_text()).texts())
    for name, parts in report_parts(page.read_text()):
        recording.add(engine, "report", name.removeprefix("data-"), parts.texts())
    for (case, which), path in tickets.items():
        lines, about = tensors_of(path)
        document = {key: json.loads(text) for key, text in about.items()}
        tensors = {"tensors": "".join(f"{line}\n" for line in lines)}
        recording.add(engine, "ticket", f"{case}-{which}", json_parts(document).texts() | tensors)


def _chosen(case: str, tables: dict[str, str]) -> str:
    """Return the run id of a case."""
    study, facts = CASES[case]
    name = f"{study}-conv2" if facts.get("network") == "conv2" else study
    rows = [
        row
        for row in csv.DictReader(io.StringIO(tables[name]))
        if row["seed"] == "0" and all(row[key] == value for key, value in facts.items())
    ]
    if not rows:
        raise ToDoError(f"no run of {name} has {facts}: adapt `CASES`.")
    return max(rows, key=lambda row: (int(row["level"]), row["id"]))["id"]


# --- Comparing ---


def compare(before: Path, after: Path, engines: Sequence[str], labels_may_change: bool) -> int:
    """Print counts per kind and up to 20 names that differ; return 1 if anything but words differs or is missing."""
    old, new = (_read(path, engines) for path in (before, after))
    free = ("words", "labels") if labels_may_change else ("words",)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    apart: dict[bool, list[str]] = {True: [], False: []}
    for key in sorted(old.keys() | new.keys()):
        _, kind, *_, part = key.split("/")
        found = "missing" if key not in new else "new" if key not in old else "differ"
        if old.get(key) == new.get(key):
            found = "equal"
        else:
            apart[part in free].append(f"{key} ({found})")
        counts[f"{kind}/{part}"][found] += 1
    columns = ("equal", "differ", "missing", "new")
    print(f"{'':20}" + "".join(f"{column:>9}" for column in columns))
    for group, count in sorted(counts.items()):
        print(f"{group:20}" + "".join(f"{count[column]:9,}" for column in columns))
    for informational, title in ((True, "Words that changed, which may"), (False, "CHANGED")):
        names = apart[informational]
        if names:
            print(f"\n{title} ({len(names):,}; with --keep, `diff -r` of the two folders shows what):")
            print("\n".join(f"  {name}" for name in names[:20]))
    print("\nNo number changed." if not apart[False] else f"\n{len(apart[False]):,} items changed that must not.")
    return 1 if apart[False] else 0


def _read(path: Path, engines: Sequence[str]) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ToDoError(f"{path} cannot be read ({error}): give two files that `record` wrote.") from None
    chosen = {key: value for key, value in found.items() if key.split("/")[0] in engines}
    if not chosen:
        raise ToDoError(f"{path} has nothing of {', '.join(engines)}: record it with --engines {' '.join(engines)}.")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
