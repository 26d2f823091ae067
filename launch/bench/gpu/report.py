"""The tables of a benchmark on a GPU, in Markdown, and which bars are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Rows = Mapping[str, Any]

STEP_TABLES = {
    "eager": "As written, by micro-batch",
    "graphs": "CUDA graphs",
    "blocks": "Compiled blocks, alone and inside CUDA graphs",
    "more blocks": "Compiled blocks inside CUDA graphs, other micro-batches",
    "recomputation": "Recomputed activations",
    "before": "Beside the code of before (its savings off, plain memory format, no search of cuDNN)",
    "public recipe": "`consistency` beside the public recipe",
    "compiled consistency": "`consistency` with compiled blocks inside CUDA graphs",
    "bfloat16": "bfloat16",
}


@dataclass(frozen=True)
class Bar:
    """value: None where it was not measured. is_upper: the value may be at most the bar, otherwise at least."""

    name: str
    bar: float
    value: float | None
    is_upper: bool = False

    def __str__(self) -> str:
        sign = "<=" if self.is_upper else ">="
        if self.value is None:
            return f"| {self.name} | {sign} {self.bar:g} | | not measured |"
        reached = self.value <= self.bar if self.is_upper else self.value >= self.bar
        return f"| {self.name} | {sign} {self.bar:g} | {self.value:.3g} | {'reached' if reached else 'not reached'} |"


def format_report(results: Row) -> str:
    """The report of the results in gpu.json. It names no folder and no host."""
    card, sections = results["card"], results["sections"]
    values = {name: section["values"] for name, section in sections.items()}
    tiny = ", tiny model (shows only that the sections work)" if results["tiny"] else ""
    lines = [f"# {card['device'] or 'CPU'}, {card['date']}{tiny}", "", "`make bench-gpu`."]
    if results["cap_gib"]:
        lines[2] += f" The allocator was limited to {results['cap_gib']:g} GiB."
    lines += ["", "; ".join(f"{name} {value}" for name, value in card.items() if name not in ("date", "device")), ""]
    lines += _table("Bars", ("", "bar", "measured", ""), map(str, bars(results)))
    if "card" in values:
        lines += _table("Measured rates", ("", "a second"), _rates(values["card"]))
    for name, title in STEP_TABLES.items():
        if values.get(name):
            lines += _table(title, STEP_HEAD, (_step_line(label, row) for label, row in values[name].items()))
    for name, rows in values.get("kernels", {}).items():
        found = (f"| `{row['name']}` | {row['calls']} | {1e3 * row['seconds']:.2f} |" for row in rows)
        lines += _table(f"Largest kernels, `{name}`", ("kernel", "calls", "ms"), found)
    if values.get("sampling"):
        lines += _table("Sampling, seconds a picture", SAMPLING_HEAD, _sampling(values["sampling"]))
    if values.get("accumulation"):
        found = values["accumulation"]
        lines += [f"The teacher's noise moves by {found['distance']:.2%} under fp16 accumulation.", ""]
    if values.get("three RTX 4090"):
        lines += _table("Model of three RTX 4090, an update of 48 samples", MODEL_HEAD, _model(values))
    ended = (f"| {name} | {row['seconds']:.1f} | {row['error'] or 'done'} |" for name, row in sections.items())
    lines += _table("Sections", ("section", "s", ""), ended)
    return "\n".join(lines).rstrip() + "\n"


def bars(results: Row) -> list[Bar]:
    """What the benchmark is to show, at the micro-batch of the comparisons, with the best `train.compile`."""
    batch = results["batch"]
    values = {name: section["values"] for name, section in results["sections"].items()}
    steps = _rows(values, "eager", "graphs", "blocks")
    best = _fastest(steps.get(f"{mode}, {batch}") for mode in ("none", "graphs", "blocks", "blocks+graphs"))
    before = values.get("before", {}).get("before")
    peers = _rows(values, "public recipe", "compiled consistency")
    ways = (f"{batch}", f"graphs, {batch}", f"blocks+graphs, {batch}")
    peer = {kind: _fastest(peers.get(f"{kind}, {way}") for way in ways) for kind in ("cached", "online")}
    peer["public recipe"] = peers.get(f"public recipe, contiguous, {batch}", {})
    sampling = values.get("sampling", {}).get("1", {})
    student, teacher = (_shortest(sampling, name) for name in ("student 4", "teacher"))
    rate, peak = "samples_per_second", "peak_gib"
    faster = teacher / student if student and teacher else None
    return [
        Bar("samples/s to the code of before", 3.0, _ratio(best, before, rate)),
        Bar("utilisation of the measured matrix rate", 0.4, _get(best, "utilisation")),
        Bar("share of the step in which the GPU is busy", 0.95, _get(best, "busy")),
        Bar("samples/s to the public recipe, cached", 3.0, _ratio(peer["cached"], peer["public recipe"], rate)),
        Bar("samples/s to the public recipe, online", 2.0, _ratio(peer["online"], peer["public recipe"], rate)),
        Bar("peak memory to the public recipe", 0.55, _ratio(peer["online"], peer["public recipe"], peak), True),
        Bar("student in 4 steps, times as fast as the teacher", 8.0, faster),
        Bar("student in 4 steps, seconds a picture at batch 1", 0.1, student, True),
    ]


STEP_HEAD = (
    *("", "s", "samples/s", "host s", "GPU busy", "of the matrix rate", "TFLOP a sample"),
    *("peak GiB", "reserved GiB", "first step s"),
)
_COLUMNS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("seconds", "{:.4f}".format),
    ("samples_per_second", "{:.2f}".format),
    ("host_seconds", "{:.4f}".format),
    ("busy", "{:.1%}".format),
    ("utilisation", "{:.1%}".format),
    ("tflop_a_sample", "{:.3f}".format),
    ("peak_gib", "{:.2f}".format),
    ("reserved_gib", "{:.2f}".format),
    ("first_seconds", "{:.1f}".format),
)
SAMPLING_HEAD = ("", "batch", "conditions", "all", "times the fastest teacher's speed")
MODEL_HEAD = ("", "matrix ms", "other kernels ms", "host ms", "communication ms", "update s", "samples/s")


def _step_line(label: str, row: Row) -> str:
    if "error" in row:
        return f"| `{label}` | {row['error']} |" + " |" * (len(STEP_HEAD) - 2)
    cells = ["" if row.get(key) is None else form(row[key]) for key, form in _COLUMNS]
    notes = f" ({row['notes']})" if row.get("notes") else ""
    return f"| `{label}`{notes} | " + " | ".join(cells) + " |"


def _rates(values: Rows) -> list[str]:
    return [f"| {name} | {rate / 1e12:.3g} {'TB' if name == 'copy' else 'TFLOP'} |" for name, rate in values.items()]


def _sampling(batches: Rows) -> list[str]:
    lines = []
    for batch, rows in batches.items():
        teacher = _shortest(rows, "teacher")
        for label, row in rows.items():
            times = f"{teacher / row['total']:.1f}" if teacher else ""
            lines.append(f"| {label} | {batch} | {row['conditions']:.3f} | {row['total']:.3f} | {times} |")
    return lines


def _model(values: Row) -> list[str]:
    keys = ("matrix_seconds", "memory_seconds", "host_seconds", "communication_seconds")
    return [
        f"| `{name}` | "
        + " | ".join(f"{1e3 * row[key]:.0f}" for key in keys)
        + f" | {row['update_seconds']:.2f} | {row['samples_per_second']:.1f} |"
        for name, row in values["three RTX 4090"].items()
    ]


def _table(title: str, head: Sequence[str], lines: Any) -> list[str]:
    return [f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines, ""]


def _get(row: Row | None, key: str) -> float | None:
    return row.get(key) if row else None


def _ratio(row: Row | None, other: Row | None, key: str) -> float | None:
    value, base = _get(row, key), _get(other, key)
    return value / base if value and base else None


def _rows(values: Row, *sections: str) -> Rows:
    """The rows of several sections."""
    return {name: row for section in sections for name, row in values.get(section, {}).items()}


def _fastest(rows: Iterable[Row | None]) -> Row:
    """The one with the most samples a second; those that were not measured, or not as they are named, have none."""
    found = ({} if row is None or row.get("fell_back") else row for row in rows)
    return max(found, key=lambda row: _get(row, "samples_per_second") or 0.0)


def _shortest(rows: Rows, name: str) -> float | None:
    """Seconds of the fastest row of that name."""
    return min((row["total"] for label, row in rows.items() if label.startswith(name)), default=None)
