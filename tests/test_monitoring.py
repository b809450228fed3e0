"""The alert rules and the dashboard that ship with the service ask for nothing that it does not show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.observability.metrics import Metrics
from tests.support.api import Json
from tests.support.receivers import receiving
from tests.support.scrapes import Scrape, scrape
from tests.support.service import Service, serve_with_sandbox
from tests.support.settings import ROOT
from tests.support.wait import eventually

PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
RULES: Json = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
DASHBOARD: Json = json.loads((GRAFANA / "dashboards" / "soundpost.json").read_text())
COMPOSE: Json = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMTOOL = shutil.which("promtool")
# Of Prometheus itself.
ITS_OWN = frozenset({"up", "ALERTS"})
SELECTOR = re.compile(r"\b(soundpost[a-z0-9_:]*|process_[a-z_]+|up|ALERTS)\b(?!\()(?:\{((?:[^{}\"]|\"[^\"]*\")*)\})?")
MATCHER = re.compile(r"(\w+)(=~|!~|!=|=)\"([^\"]*)\"")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs Debian's prometheus package")


def rules() -> list[Json]:
    """Every rule of every group."""
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard, by where it stands."""
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['id']} {panel['title']}/{target['refId']}"] = target["expr"].replace(
                "$__rate_interval", "5m"
            )
    for annotation in DASHBOARD["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    return found


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated_sqlite, tmp_path / "soundpost.db")
    return f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"


async def test_every_series_that_is_asked_for_is_shown_by_a_service_at_work(sqlite_url: str, tmp_path: Path) -> None:
    async with receiving() as receiver, serve_with_sandbox(sqlite_url, tmp_path) as service:
        task = await service.archived(webhook_url=receiver.url)
        await receiver.until(1)
        (await service.client.get("/v1/credits")).raise_for_status()
        await _surprise(service, task["id"])
        await eventually(lambda: _is_counted(service))
        seen = await scrape(service.client)

    known = {rule["record"] for rule in rules() if "record" in rule} | ITS_OWN
    asked = {where: list(_selectors(expr)) for where, expr in expressions().items()}
    missing = {(where, name) for where, names in asked.items() for name, _ in names if name not in seen.names | known}
    assert missing == set()
    wrong = [
        (where, name, matcher)
        for where, found in asked.items()
        for name, matchers in found
        for matcher in matchers
        if name not in known and not _can_match(seen, name, matcher)
    ]
    assert wrong == []
    assert all(names for names in asked.values()), asked


async def _surprise(service: Service, task_id: str) -> None:
    """Let the upstream say what we do not know."""
    for code, word in ((200, "BREWING"), (599, "error")):
        report = {"code": code, "msg": "?", "data": {"callbackType": word, "task_id": "u", "data": None}}
        await service.anonymous.post(service.callback_path(task_id), json=report)


async def _is_counted(service: Service) -> bool:
    """Whether what was delivered is counted, and what the database knows of the credits is read again."""
    seen = await scrape(service.client)
    delivered = seen("soundpost_delivery_attempts_total", outcome="delivered")
    return delivered == 1 and seen("soundpost_credits") is not None


def _selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics of an expression, each with its matchers; what is by labels alone is left out."""
    plain = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", expression)
    for name, matchers in SELECTOR.findall(plain):
        yield name, MATCHER.findall(matchers)


def _can_match(seen: Scrape, name: str, matcher: tuple[str, str, str]) -> bool:
    """Whether the metric has this label, and each value that is named there."""
    label, operator, value = matcher
    if label == "job":
        return True
    values = {dict(labels).get(label) for each, labels in seen.samples if each == name}
    wanted = value.split("|") if "~" in operator else [value]
    is_a_pattern = "~" in operator and "." in value
    return values != {None} and (is_a_pattern or operator.startswith("!") or set(wanted) <= values)


def test_selectors_are_read_as_they_are_meant() -> None:
    text = 'sum by (soundpost_x) (rate(soundpost_a_total{b=~"c|d",e!="{f}"}[5m])) / soundpost_g > up{job="h"}'

    assert list(_selectors(text)) == [
        ("soundpost_a_total", [("b", "=~", "c|d"), ("e", "!=", "{f}")]),
        ("soundpost_g", []),
        ("up", [("job", "=", "h")]),
    ]


@needs_promtool
def test_prometheus_accepts_its_configuration_and_every_expression(tmp_path: Path) -> None:
    asked = [{"record": f"x:{number}", "expr": each} for number, each in enumerate(expressions().values())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": asked}]}))

    checked = [
        _promtool("check", "config", str(PROMETHEUS / "prometheus.yml")),
        _promtool("check", "rules", str(PROMETHEUS / "rules.yml")),
        _promtool("check", "rules", str(tmp_path / "all.yml")),
    ]

    assert [output for code, output in checked if code] == []


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    code, output = _promtool("test", "rules", str(PROMETHEUS / "rules.test.yml"))

    assert code == 0, output


def test_every_alert_says_what_to_do_and_how_urgent_it_is() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]

    assert len(alerts) > 15
    assert {alert["labels"]["severity"] for alert in alerts} == {"critical", "warning"}
    assert [
        alert["alert"] for alert in alerts if not all(alert["annotations"].get(key) for key in ("summary", "action"))
    ] == []


def test_dashboard_begins_with_whether_it_is_well_and_explains_each_panel() -> None:
    first, *panels = DASHBOARD["panels"]
    shown = [panel for panel in panels if panel["type"] != "row"]

    assert (first["type"], first["title"]) == ("row", "Is it well?")
    assert panels[0]["type"] == "stat"
    assert [panel["title"] for panel in shown if not panel["description"]] == []
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    overlaps = [(one["title"], other["title"]) for one, other in _pairs(DASHBOARD["panels"]) if _overlap(one, other)]
    assert overlaps == []


def _pairs(panels: list[Json]) -> Iterator[tuple[Json, Json]]:
    return ((one, other) for place, one in enumerate(panels) for other in panels[place + 1 :])


def _overlap(one: Json, other: Json) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    return bool(
        a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
    )


def test_composition_provisions_both_from_these_files_and_shows_them_to_this_machine_alone() -> None:
    services: Mapping[str, Any] = COMPOSE["services"]
    monitoring = {name: each for name, each in services.items() if "monitoring" in each.get("profiles", ())}
    mounts = [mount for each in monitoring.values() for mount in each["volumes"] if mount.startswith("./")]
    inside = {source: target for source, target, _ in (mount.split(":") for mount in mounts)}

    assert set(monitoring) == {"prometheus", "grafana"}
    assert all(mount.endswith(":ro") and (ROOT / mount.split(":")[0]).is_dir() for mount in mounts)
    assert all(port.startswith("127.0.0.1:") for each in monitoring.values() for port in each["ports"])
    assert all(re.search(r":v?\d+\.\d+\.\d+$", each["image"]) for each in monitoring.values())
    assert inside["./deploy/prometheus"] == "/etc/prometheus"
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/soundpost.yml").read_text())["providers"]
    assert inside["./deploy/grafana/dashboards"] == provider["options"]["path"]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]


def test_composition_is_scraped_where_it_listens() -> None:
    [job] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    [targets] = (each["targets"] for each in job["static_configs"])
    port = COMPOSE["services"]["worker"]["environment"]["SOUNDPOST_WORKER_PORT"]

    assert targets == ["serve:8000", f"worker:{port}"]


def test_operations_lists_every_metric() -> None:
    section = (ROOT / "docs" / "operations.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `(soundpost_\w+)`", section, re.MULTILINE))
    of_process = {f"{each.name}_total" if each.type == "counter" else each.name for each in Metrics().collect()}
    of_database = set(re.findall(r'"(soundpost_\w+)"', (ROOT / "app" / "health" / "metrics.py").read_text()))

    assert listed == {name for name in of_process if name.startswith("soundpost_")} | of_database


def _promtool(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
