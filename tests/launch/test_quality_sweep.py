"""The quality sweep: its plan, what an evaluation becomes in the table, and the files that it writes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.config.recipes import load_recipe
from launch.experiments import plot_quality
from launch.experiments import quality_sweep as launch_quality
from launch.experiments.quality_page import costs_table, full_table, goals_table, students_table, write_page
from launch.experiments.quality_results import (
    MEASURES,
    CurvePoint,
    Quality,
    QualityRow,
    curve_points,
    mean_over_seeds,
    quality_rows,
    read_quality,
)
from tests.helpers.paths import ROOT

PLAN = ROOT / "launch" / "experiments" / "quality.yaml"


@pytest.fixture(scope="module")
def shipped() -> launch_quality.Plan:
    """The shipped plan: to read it checks 60 recipes, which takes seconds."""
    return launch_quality.read_plan(PLAN)


def group(score: float, lines: int = 10) -> dict[str, Any]:
    values = {
        "exact_match": score,
        "ned": score + 0.05,
        "structure": 0.7,
        "psnr_db": 20.0,
        "background": 0.8,
        "distance": 0.1,
        "text_distance": 0.01,
    }
    return {"lines": lines, **values, **{f"{name}_95": [value - 0.1, value + 0.1] for name, value in values.items()}}


def summary_row(role: str, sampler: str, steps: int, score: float) -> dict[str, Any]:
    languages = {"language Latin": group(score - 0.1, 6), "language Chinese": group(score + 0.1, 4)}
    return {"key": f"{role}-{sampler}-{steps}", "role": role, "sampler": sampler, "steps": steps} | {
        "nfe": 2 * steps,
        **group(score),
        "groups": {**languages, "height 32-48": group(0.0)},
    }


SUMMARY = {
    "reference": "teacher-ddim-50",
    "rows": [
        summary_row("teacher", "ddim", 50, 0.8),
        summary_row("undistilled", "ddim", 4, 0.5),
        summary_row("undistilled", "consistency", 4, 0.6),
        summary_row("student", "phased", 4, 0.7),
    ],
}


CURVE = [CurvePoint("phased", 7, update, 1.0 / update, 0.5, 0.75) for update in (15, 30)]


def rows() -> list[QualityRow]:
    student = list(quality_rows(SUMMARY, "phased", 7))
    other = [replace(row, seed=8, sen_acc=row.sen_acc + 0.1) for row in student]
    return [*quality_rows(SUMMARY, "", 0), *student, *other]


def test_an_evaluation_becomes_rows_by_language() -> None:
    found = list(quality_rows(SUMMARY, "", 0))
    assert [(r.model, r.steps, r.language, r.lines) for r in found if r.model != "student"] == [
        *(("teacher", 50, name, n) for name, n in (("all", 10), ("latin", 6), ("chinese", 4))),
        *(("undistilled", 4, name, n) for name, n in (("all", 10), ("latin", 6), ("chinese", 4))),
        *(("undistilled_consistency", 4, name, n) for name, n in (("all", 10), ("latin", 6), ("chinese", 4))),
    ]
    teacher, undistilled = found[0], found[3]
    assert teacher.psnr is None and teacher.distance_95 is None, "nothing to compare the reference with"
    assert (undistilled.sen_acc, undistilled.psnr, undistilled.distance) == (0.5, 20.0, 0.1)
    (student, latin, _) = quality_rows(SUMMARY, "phased", 7)
    assert (student.model, student.seed, student.sen_acc, latin.sen_acc) == ("phased", 7, 0.7, 0.6)


def test_files_come_back_and_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    quality = Quality({"objectives": rows(), "causes": rows()[:3]}, {"causes": CURVE})
    quality.write(file, {"command": "make it", "n": [1, 2]})
    assert read_quality(file) == quality and read_quality(tmp_path / "none") == Quality()
    assert json.loads(file.read_text())["rows"][0]["model"] == "teacher", "the table of objectives under this name"
    text = file.read_text()
    for broken, words in (
        (text.replace('"seed": 7', '"sed": 7', 1), r"rows\[\d+\]: missing \['seed'\], unknown \['sed'\]"),
        (text.replace('"language": "latin"', '"language": "klingon"', 1), "language='klingon': one of all, latin"),
        (
            text.replace('"update": 15', '"step": 15', 1),
            r"curves.causes\[0\]: missing \['update'\], unknown \['step'\]",
        ),
        ("{", "not valid JSON"),
        ('{"causes": []}', "a list of `rows`"),
    ):
        file.write_text(broken)
        with pytest.raises(ValueError, match=words):
            read_quality(file)


def test_goals_are_shares_of_the_teacher_and_of_the_undistilled_model() -> None:
    wanted = [replace(row, steps=4, distance=0.5) if row.model == "undistilled" else row for row in rows()]
    wanted += [replace(row, steps=2, distance=0.4) for row in wanted if row.model == "undistilled"]
    lines = goals_table(wanted).splitlines()
    assert "sen_acc at 8: at least 99.5% of the teacher's" in lines[0]
    assert "distance at 4: at most 25.0% of the undistilled's" in lines[0]
    student = next(line for line in lines if line.startswith("| phased |"))
    # Sen.ACC at 1, 2, 4 (0.75 of 0.8) and 8 steps, structure at 4, distances at 2 and 4 (0.1 of 0.5)
    assert student == "| phased | - | - | 93.8% | - | **100.0%** | - | **20.0%** |"
    assert not any(line.startswith("| teacher |") for line in lines)


def test_costs_are_differences_from_the_first_student() -> None:
    worse = [replace(r, model="fault", sen_acc=r.sen_acc - 0.25, structure=0.5) for r in rows() if r.model == "phased"]
    good = [row for row in rows() if row.model != "student"]
    first, second = costs_table([*good, *worse], CURVE).splitlines()[2:]
    assert first == "| phased | 0.750 | 0.700 | 20.0 | 0.800 | 0.100 | 0.0667 to 0.0333 |"
    assert second == (
        "| fault | 0.500 (-0.250 ± 0.141) | 0.500 (-0.200 ± 0.141) | 20.0 (+0.0 ± 0.1) | "
        "0.800 (+0.000 ± 0.141) | 0.100 (+0.000 ± 0.141) | - |"
    ), "the root of both half-widths' squares"


def test_the_curve_of_a_training_is_where_it_was_read() -> None:
    logged = [{"step": step, "loss": 1.0 / step} for step in (5, 10)]
    read = {"eval/exact_match": 0.5, "eval/ned": 0.75}
    resumed = [{"step": 15, "loss": 0.3, **read}, {"step": 15, "loss": 0.2, **read}]
    assert curve_points([*logged, *resumed], "phased", 7) == [CurvePoint("phased", 7, 15, 0.2, 0.5, 0.75)]


def test_only_comparisons_may_be_unknown() -> None:
    row = next(iter(quality_rows(SUMMARY, "phased", 7)))
    assert replace(row, text_distance=None, text_distance_95=None).text_distance is None
    with pytest.raises(ValueError, match="sen_acc=None: only what is compared"):
        replace(row, sen_acc=None, sen_acc_95=None)
    without = {**SUMMARY, "rows": [{k: v for k, v in r.items() if k != "exact_match"} for r in SUMMARY["rows"]]}
    with pytest.raises(KeyError):
        list(quality_rows(without, "", 0))


def test_tables_stand_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "QUALITY.md"
    page.write_text("above\n<!-- objectives -->\nold\n<!-- end objectives -->\nbelow\n")
    for _ in range(2):
        write_page(page, Quality({"objectives": rows()}))
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "| phased | 4 | 8 | 2 | 0.750 (0.700-0.800) | 0.650 | 0.850 | 0.750 | 0.700 | 20.0 | 0.800 | 0.100 |" in text
    assert "| teacher | 50 | 100 | 1 | 0.800 (0.700-0.900) | 0.700 | 0.900 | 0.850 | 0.700 | - | - | - |" in text
    with pytest.raises(ValueError, match="the marks <!-- causes -->"):
        write_page(page, Quality({"causes": rows()}))
    assert full_table(rows()).count("\n") == 1 + 5, "teacher, undistilled twice, and the student under two names"
    assert [line.split(" | ")[0] for line in students_table(rows()).splitlines()[2:]] == ["| student", "| phased"]
    assert mean_over_seeds(rows(), "phased", "latin", "sen_acc") == {4: pytest.approx(0.65)}


@pytest.mark.heavy
def test_the_figure_has_a_panel_for_each_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "quality.json", tmp_path / "quality.png"
    Quality({"objectives": rows(), "causes": rows()}, {"causes": CURVE}).write(data, {})
    for name, panels in (("objectives", len(MEASURES)), ("causes", len(MEASURES) + 2)):
        chosen = ["--data", str(data), "--out", str(out), "--language", "chinese", "--set", name]
        assert plot_quality.main(chosen) == 0
        with Image.open(out) as picture:
            columns = (panels + 1) // 2
            assert 500 * columns < picture.width < 520 * columns, "two rows of panels"
    assert plot_quality.main(["--data", str(tmp_path / "none.json"), "--out", str(out)]) == 2
    assert "launch/experiments/quality_sweep.py makes it" in capsys.readouterr().err
    assert plot_quality.main(["--data", str(data), "--set", "none"]) == 2
    assert "has objectives, causes" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_page_shows_what_the_committed_data_says(tmp_path: Path, shipped: launch_quality.Plan) -> None:
    docs = ROOT / "docs"
    page = tmp_path / "QUALITY.md"
    page.write_bytes((docs / "QUALITY.md").read_bytes())
    quality = read_quality(docs / "quality.json")
    assert set(quality.tables) == set(shipped.sets)
    write_page(page, quality)
    text = page.read_text()
    assert text == (docs / "QUALITY.md").read_text()
    assert min(row.lines for row in quality.tables["objectives"] if row.language == "all") >= 500
    missing = {
        (table, name, seed)
        for table, variants in shipped.sets.items()
        for name, variant in variants.items()
        for seed in variant.seeds
    } - {(table, row.model, row.seed) for table, rows in quality.tables.items() for row in rows}
    assert bool(missing) == ("**Not complete yet" in text), f"the page must say so while there are: {missing}"
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", text, re.DOTALL):
        assert (docs / figure).is_file(), figure


@pytest.mark.heavy
def test_every_variant_of_the_shipped_plan_is_a_recipe(shipped: launch_quality.Plan) -> None:
    plan = shipped
    found = launch_quality.plan_runs(plan, list(plan.sets))
    for variants in found.values():
        for own in variants.values():
            for run in own:
                assert load_recipe(ROOT / plan.recipe, [*plan.common, *run.values]).objective_config
    assert found["causes"]["none"] == [found["objectives"]["phased"][0]], "measured once"
    assert found["causes"]["x0_regression"][0].folder == found["objectives"]["x0_regression"][0].folder, "trained once"
    folders = [run.folder for variants in found.values() for own in variants.values() for run in own]
    assert len(set(folders)) == len({(r.values, r.seed) for v in found.values() for own in v.values() for r in own})


def test_two_samplers_of_a_training_train_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def slowly(*given: Any) -> None:
        recorded(called, *given)
        time.sleep(0.1)  # a second training would begin before the first one's evaluation has ended

    monkeypatch.setattr(launch_quality, "run_python", slowly)
    plan = launch_quality.Plan(
        recipe="recipe.yaml",
        sets={"one": {name: launch_quality.Variant(["a=1"], sampler=name) for name in ("", "ddim")}},
    )
    runs = launch_quality.seed_by_seed(launch_quality.plan_runs(plan, ["one"]))
    assert len(runs) == 2 and {run.folder for run in runs} == {"_7"}
    runner = launch_quality.SweepRunner(plan, tmp_path, 2)
    (done,) = launch_quality.measure_all(runner, runs, 2)
    assert set(done) == set(runs)
    assert sum("launch/train.py" in command for command in called) == 1
    assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("**/summary.json")} == {
        "_7",
        "_7/ddim",
    }


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("was", "put", "told"),
    [
        ("objective.text_weight=5]", "objective.text_wait=5]", "sets.ablation.A1_text_weight: .*text_wait"),
        ("objective.phases=8, ", "objective.phases=3, ", "sets.phases.phases_8: .*does not divide"),
        ("sampler: phased", "sampler: euler", "sets.objectives.x0_regression_phased.sampler=euler: one of"),
        ("pictures: 360", "pictures: {", "plan.yaml: "),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, put: str, told: str
) -> None:
    monkeypatch.chdir(ROOT)
    text = PLAN.read_text()
    assert was in text
    (tmp_path / "plan.yaml").write_text(text.replace(was, put))
    with pytest.raises(ValueError, match=told):
        launch_quality.read_plan(tmp_path / "plan.yaml")


def test_two_variants_of_one_name_must_be_the_same() -> None:
    plan = launch_quality.Plan(
        sets={
            "one": {"a": launch_quality.Variant(["x=1"])},
            "other": {"a": launch_quality.Variant(["x=2"])},
        }
    )
    with pytest.raises(ValueError, match="sets.other.a: another variant of this name has other values"):
        launch_quality.plan_runs(plan, ["one", "other"])


def recorded(called: list[list[str]], log: Path, environment: dict[str, str], *arguments: object) -> None:
    """A command that leaves what the real one leaves."""
    command = [str(part) for part in arguments]
    called.append(command)
    if "launch/evaluate.py" in command:
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({**SUMMARY, "command": " ".join(command)}))
    if "launch/train.py" in command:
        point = {"step": 15, "loss": 0.1, "eval/exact_match": 0.5, "eval/ned": 0.75}
        (log.parent / "metrics.jsonl").write_text(json.dumps(point) + "\n")


@pytest.mark.heavy
def test_a_sweep_trains_and_measures_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(launch_quality, "run_python", partial(recorded, called))
    monkeypatch.setattr(launch_quality, "read_plan", cache(launch_quality.read_plan))  # it does not change here
    monkeypatch.chdir(ROOT)
    (tmp_path / "QUALITY.md").write_text("<!-- objectives -->\n<!-- end objectives -->\n")
    argv = ["--out", str(tmp_path / "runs"), "--docs", str(tmp_path), "--only", "objectives"]
    assert launch_quality.main(argv) == 0
    trained = [command for command in called if "launch/train.py" in command]
    assert len(trained) == 18 and all("train.max_steps=60" in command for command in trained)
    measured = [command for command in called if "launch/evaluate.py" in command]
    assert len(measured) == 22 and all("--reference" in command for command in measured)
    written = read_quality(tmp_path / "quality.json")
    rows = written.tables["objectives"]
    models = list(dict.fromkeys(row.model for row in rows))
    planned = launch_quality.read_plan(launch_quality.parse(argv).plan).sets["objectives"]
    assert models == ["teacher", "undistilled", "undistilled_consistency", "student", *planned], (
        "the plan's order, not that of their ends"
    )
    assert {row.seed for row in rows if row.model == "phased"} == {7, 8, 9}
    assert len(written.curves["objectives"]) == 21
    called.clear()
    (tmp_path / "runs" / "phased_7" / "summary.json").unlink()
    assert launch_quality.main(argv) == 0
    assert sum("launch/train.py" in command for command in called) == 1, "what is there is not made again"
    (tmp_path / "runs" / "phased_7" / "variant.json").write_text('["other values"]')
    assert launch_quality.main(argv) == 2
    assert "a run of other values than the plan's" in capsys.readouterr().err
    (tmp_path / "runs" / "phased_7" / "variant.json").unlink()
    (tmp_path / "runs" / "undistilled" / "summary.json").write_text('{"command": "launch/evaluate.py --count 1"}')
    assert launch_quality.main(argv) == 2
    assert "remove it to measure again" in capsys.readouterr().err
    assert launch_quality.main([*argv[:-1], "nothing"]) == 2


@pytest.mark.heavy
def test_a_command_that_fails_ends_the_sweep_and_leaves_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.read_text().replace("pictures: 360", "pictures: 0"))
    monkeypatch.chdir(ROOT)
    (tmp_path / "QUALITY.md").write_text("<!-- causes -->\n<!-- end causes -->\n")
    argv = ["--plan", str(plan), "--out", str(tmp_path / "runs"), "--docs", str(tmp_path), "--only", "causes"]
    assert launch_quality.main(argv) == 1
    told = capsys.readouterr().err
    assert "launch/make_dataset.py ended with exit code 2" in told and "held_out.log" in told
    assert "error: count: 0" in (tmp_path / "runs" / "held_out.log").read_text()


@pytest.mark.heavy
def test_every_variant_has_its_first_run_before_any_has_its_second(shipped: launch_quality.Plan) -> None:
    plan = shipped
    runs = launch_quality.seed_by_seed(launch_quality.plan_runs(plan, list(plan.sets)))
    seeds = [run.seed for run in runs]
    several = sum(len(variant.seeds) == 3 for variants in plan.sets.values() for variant in variants.values())
    assert len(set(runs)) == len(runs) and seeds == sorted(seeds) and seeds.count(8) == seeds.count(9) == several > 0
