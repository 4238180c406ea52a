"""The Grafana dashboard and the alert rules in configs/: each expression names metrics that the exporter has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import ROOT
from tests.unit.exporter.test_metrics import busy_hub, exposed, snapshot

DASHBOARD = ROOT / "configs/grafana-dashboard.json"
ALERTS = ROOT / "configs/prometheus-alerts.yml"

FROM_PROMETHEUS = {"up": {"job", "instance"}}
FROM_SCRAPE = {"job", "instance"}

STRING = re.compile(r"\"[^\"]*\"")
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
FUNCTIONS = re.compile(r"\b[a-z_]+(?=\s*\()")
WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "vector",
}
DURATION = re.compile(r"\[[^]]*\]")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Title and expression, of all panels and rules."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    return found + [(rule["alert"], rule["expr"]) for rule in rules]


def exported() -> dict[str, set[str]]:
    """Every metric of a client and of a hub, with its labels."""
    labels: dict[str, set[str]] = {}
    for shown in (snapshot(), busy_hub()):
        for family in text_string_to_metric_families(exposed(shown)):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


EXPORTED = exported() | FROM_PROMETHEUS


def metrics_of(expression: str) -> set[str]:
    """The names of metrics in an expression: all names but functions, keywords, labels and what stands in quotes."""
    bare = DURATION.sub("", STRING.sub('""', expression.replace("$__rate_interval", "5m")))
    bare = re.sub(r"\{[^}]*\}", "", GROUPING.sub("", bare))
    return set(NAME.findall(FUNCTIONS.sub("", bare))) - WORDS - {"e6"}


@pytest.mark.parametrize(("title", "expression"), expressions(), ids=lambda value: value[:40])
def test_each_panel_and_each_rule_is_backed_by_metrics_with_these_labels(title: str, expression: str) -> None:
    metrics = metrics_of(expression)
    assert metrics
    assert metrics <= EXPORTED.keys(), title
    known = set().union(*(EXPORTED[each] for each in metrics)) | FROM_SCRAPE
    for labels in GROUPING.findall(expression):
        assert {each.strip() for each in labels.split(",") if each.strip()} <= known, title
    for name, matchers in SELECTOR.findall(expression):
        assert {each.split("=")[0].strip(" !~") for each in matchers.split(",")} <= EXPORTED[name] | FROM_SCRAPE, title


@pytest.mark.parametrize("panel", panels(json.loads(DASHBOARD.read_text())), ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_are_there(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        known = set().union(*(EXPORTED[each] for each in metrics_of(target["expr"]))) | FROM_SCRAPE
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_the_dashboard_covers_what_people_look_for() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = " ".join(target["expr"] for panel in panels(dashboard) for target in panel["targets"])
    for name in ("ready", "tcp_sent_bytes", "round_trip", "fec_blocks_recovered", "dropped", "ring_waiting", "peer_",
                 "worker_restarts", "worker_cpu"):  # fmt: skip
        assert f"tunnel_{name}" in shown
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(places) == len(set(places))


def test_a_name_that_the_exporter_does_not_have_is_found() -> None:
    assert metrics_of('sum by (worker) (rate(tunnel_no_such_total{job="x"}[5m])) > 3 and up == 1') == {
        "tunnel_no_such_total",
        "up",
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (prometheus) is not installed")
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 rules found" in done.stdout
