"""A plan as text: Markdown tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distill.planning.memory import GIB, LEAST_BATCH, MOST_BATCH, Division
from distill.planning.micro_step import STUDENT, TEACHER
from distill.planning.plan import Plan
from distill.planning.speed import SECONDS_AN_OPERATION

TERA = 1e12
MOST_PAIRS = 5
SHOWN = GIB // 200
"""Bytes from which a part has a row of its own."""


def report(plan: Plan, pictures: int | None) -> Iterator[str]:
    """The lines of the whole report. pictures: of the data set; None: unknown."""
    yield from _head(plan)
    yield from _memory(plan)
    yield from _flops(plan)
    yield from _time(plan)
    yield from _divisions(plan)
    yield from _storage(plan, pictures)
    yield verdict(plan)


def verdict(plan: Plan) -> str:
    """Whether it fits, in one line."""
    has, setting = plan.machine.memory, plan.recipe.model.activation_checkpointing
    needs = f"about {plan.peak / GIB:.1f} of {has:g} GiB on each GPU"
    if plan.fits:
        return f"fits: {needs}"
    smaller = [f"model.activation_checkpointing={name}" for name, cost in plan.memory.items() if cost.peak <= has * GIB]
    fitting = [d.micro for d in plan.divisions[setting] if d.effective == plan.batch.effective]
    helps = [f"train.micro_batch={max(fitting)}"] if fitting else []
    return f"does not fit: {needs}; " + (" or ".join(helps + smaller) or "nothing here helps: take a card with more")


def _head(plan: Plan) -> Iterator[str]:
    batch, recipe = plan.batch, plan.recipe
    where = f"LoRA ({recipe.lora.targets})" if plan.cost.weights.get("LoRA") else "base weights"
    yield (
        f"{recipe.name}: {recipe.objective['name']}, model {recipe.model.config}, {plan.size[1]}x{plan.size[0]} px; "
        f"effective batch {batch.effective} = {batch.micro} x {batch.accumulation} x {batch.world} GPUs; "
        f"{plan.cost.trained:,} trained parameters of {where}"
    )
    if recipe.train.compile != "none":
        yield f"train.compile={recipe.train.compile} is left out: this is the plan of train.compile=none"
    yield ""


def _memory(plan: Plan) -> Iterator[str]:
    own = plan.recipe.model.activation_checkpointing
    names = [own, *(name for name in plan.memory if name != own)]
    heads = [f"{name} (the recipe's)" if name == own else name for name in names]
    yield f"Memory of a GPU at its highest point in GiB, micro-batch {plan.batch.micro}, by what is recomputed:"
    yield ""
    parts = [part for part in plan.memory[own].parts if any(plan.memory[n].parts[part] >= SHOWN for n in names)]
    rows = [[part, *(_gib(plan.memory[name].parts[part]) for name in names)] for part in parts]
    peaks = ["**peak**", *(f"**{_gib(plan.memory[name].peak)}**" for name in names)]
    yield from _table(["part", *heads], [*rows, peaks])


def _flops(plan: Plan) -> Iterator[str]:
    cost = plan.cost
    yield "Arithmetic of a sample:"
    yield ""
    rows = []
    for part, count in sorted(cost.flops.items(), key=lambda item: -item[1]):
        if count:
            calls = cost.calls.get(part, 0)
            rows.append([part, str(calls) if calls else "", f"{count / cost.samples / TERA:.3f}"])
    total = sum(cost.flops.values()) / cost.samples / TERA
    yield from _table(["part", "calls", "TFLOP"], [*rows, ["**all**", "", f"**{total:.3f}**"]])
    if cost.calls.get(f"{TEACHER}: UNet") and cost.calls.get(f"{STUDENT}: UNet"):
        yield "A guided teacher's call computes both branches. The backward pass includes what is recomputed."
    if cost.flops.get("VAE"):
        yield "In editing mode a sample has two pictures to encode; data.latents=cache takes both from the cache."
    yield ""


def _time(plan: Plan) -> Iterator[str]:
    speed, recipe, machine, batch = plan.speed, plan.recipe, plan.machine, plan.batch
    yield "Time, without validation, previews and checkpoints:"
    if machine.samples_per_second:
        yield f"  as measured: {machine.samples_per_second:g} samples/s"
    else:
        rate = f"{machine.utilisation:.0%} of {machine.flops / TERA:.0f} TFLOP/s"
        host = f"{plan.cost.operations:,} operations at {SECONDS_AN_OPERATION * 1e6:.0f} us"
        yield f"  a micro-step of {batch.micro}: GPU {speed.gpu:.2f} s ({rate}), host {speed.host:.2f} s ({host})"
        yield f"  the limit is {speed.limit}"
    yield (
        f"  {speed.samples_per_second:.1f} samples/s, {batch.effective / speed.samples_per_second:.1f} s an update, "
        f"{speed.hours(recipe.train.max_steps, batch.effective):.1f} hours for {recipe.train.max_steps} updates"
    )
    yield ""


def _divisions(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield f"Batches that fit {machine.memory:g} GiB, {LEAST_BATCH} to {MOST_BATCH} samples on {machine.gpus} GPUs:"
    yield ""
    rows = []
    for setting, found in plan.divisions.items():
        for micro in dict.fromkeys(division.micro for division in found):
            these = [division for division in found if division.micro == micro]
            rows.append([setting, str(micro), _gib(these[0].peak), _pairs(these)])
    yield from _table(["recomputed", "micro-batch", "peak GiB", "micro x accumulation = effective"], rows)


def _pairs(found: Sequence[Division]) -> str:
    if len(found) > MOST_PAIRS:
        first, last = found[0], found[-1]
        return f"{first.micro} x {first.accumulation} to {last.accumulation} = {first.effective} to {last.effective}"
    return ", ".join(f"{d.micro} x {d.accumulation} = {d.effective}" for d in found)


def _storage(plan: Plan, pictures: int | None) -> Iterator[str]:
    cache, host, machine = plan.cache, plan.host, plan.machine
    count = 1_000_000 if pictures is None else pictures
    unknown = " (how many there are is not known: --pictures N)" if pictures is None else ""
    encoding = cache.encode_flops / (machine.flops * machine.utilisation * machine.gpus)
    yield f"Feature cache of {count:,} pictures{unknown}: {count * cache.total / GIB:.1f} GiB on disk"
    yield (
        f"  KiB a picture: drawings {cache.drawings / 1024:.0f} (measured on drawn pictures), latents "
        f"{cache.latents / 1024:.0f}, context of the caption {cache.context / 1024:.0f}"
    )
    yield (
        f"  to build: {count * cache.draw_seconds / 3600:.1f} hours of one CPU core for the drawings, "
        f"{count * encoding / 3600:.1f} hours of {machine.gpus} GPUs for the latents"
    )
    yield ""
    yield f"Memory of the host, {machine.gpus} ranks: {host.total / GIB:.1f} GiB"
    yield (
        f"  {host.weights / GIB:.1f} for the model in float32 while it starts, {host.ranks / GIB:.1f} for the ranks' "
        f"processes, {host.loaders / GIB:.1f} for {plan.recipe.data.workers * machine.gpus} loaders, "
        f"{host.batches / GIB:.1f} for what they read ahead"
    )
    yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
