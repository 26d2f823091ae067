"""How MLflow's page shows one run: what its "Share view" stores as a tag of the experiment, made here.

A run's own page sorts sections by name, and fills the card of a picture with all parameters of the run. A stored view
has an order of sections, leaves the parameters out, opens the slider at the newest picture, and lists the evaluations
below their training. An MLflow that does not know such views shows its usual list of runs.
tests/distill/tracking/test_page.py and docs/TRACKING.md say with which release this was looked at.
"""

from __future__ import annotations

import json
from typing import Any

from distill.tracking.metric_names import LOSS, SPELLING

GLANCE = "at a glance"
"""The section that comes before all others, by its name too: on a run's own page names are the only order."""
SHOWN_FIRST = {LOSS: f"{GLANCE}/loss", SPELLING: f"{GLANCE}/spelling"}
"""Metrics that are also in that section, and their names there."""
PREVIEWS = f"{GLANCE}/previews"
GROUP = "group"
"""Tag of a training and of its evaluations: the id of the training's run."""
VIEW_TAG = "mlflow.sharedViewState."
_SECTIONS = (GLANCE, "train", "eval", "speed", "health", "Model metrics", "System metrics")


def view_state(group: str, preview: int) -> str:
    """The stored view of a training and its evaluations, as JSON. preview: the update whose picture is shown first."""
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}
        for name in _SECTIONS
    ]
    charts = [*(_line(name) for name in SHOWN_FIRST.values()), _pictures(preview)]
    return json.dumps(
        {
            "searchFilter": f"tags.`{GROUP}` = '{group}'",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "runsExpanded": {group: True},
            "compareRunCharts": charts,
            "compareRunSections": sections,
            "isAccordionReordered": True,
        },
        separators=(",", ":"),
    )


def _card(kind: str, name: str) -> dict[str, Any]:
    usual = {"runsCountToCompare": 10, "deleted": False, "isGenerated": True}
    return {"type": kind, "uuid": name, "metricSectionId": GLANCE, **usual}


def _line(metric: str) -> dict[str, Any]:
    axes: dict[str, Any] = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "yAxisKey": "metric"}
    axes |= {"range": {}, "yAxisExpressions": [], "lineSmoothness": 0, "useGlobalXaxisKey": True}
    names = {"metricKey": metric, "selectedMetricKeys": [metric], "displayName": metric.rsplit("/", 1)[-1]}
    return _card("LINE", metric) | names | axes


def _pictures(step: int) -> dict[str, Any]:
    return _card("IMAGE", PREVIEWS) | {"imageKeys": [PREVIEWS], "step": step, "showRunParams": False}
