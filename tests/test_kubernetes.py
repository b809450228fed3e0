"""The Kubernetes manifests are valid for the newest API, and name only what exists in them and in the service."""

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from sqlalchemy import make_url

from app import __version__
from app.cli.main import main
from app.config import PREFIX, SECRETS, Settings
from app.health.database_setup import BESIDE_POOL
from tests.api.document import document
from tests.support.settings import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
Manifest = dict[str, Any]
KUSTOMIZATION: Manifest = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
CLUSTER_WIDE = {"Namespace"}
WORKLOADS = ("soundpost-serve", "soundpost-worker", "soundpost-migrate")
# Kinds that hold pods, and where.
PODS = {"Deployment", "Job"}


def rendered() -> Iterator[Manifest]:
    """What `kubectl kustomize` makes of the folder: every resource in the namespace, with the image's tag."""
    [image] = KUSTOMIZATION["images"]
    for name in KUSTOMIZATION["resources"]:
        for manifest in yaml.safe_load_all((FOLDER / name).read_text()):
            if manifest["kind"] not in CLUSTER_WIDE:
                manifest["metadata"]["namespace"] = KUSTOMIZATION["namespace"]
            for container in _containers(manifest):
                assert container["image"] == image["name"]
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
            yield manifest


def _containers(manifest: Manifest) -> list[Manifest]:
    return _pod(manifest)["containers"] if manifest["kind"] in PODS else []


def _pod(manifest: Manifest) -> Manifest:
    pod: Manifest = manifest["spec"]["template"]["spec"]
    return pod


MANIFESTS = list(rendered())
SECRET_EXAMPLES = list(yaml.safe_load_all((FOLDER / "secret.example.yaml").read_text()))
[CONFIG] = [each["data"] for each in MANIFESTS if each["kind"] == "ConfigMap"]


def _one(kind: str, name: str) -> Manifest:
    [found] = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def _workload(name: str) -> Manifest:
    return _one("Job" if name.endswith("migrate") else "Deployment", name)


def _labels(name: str) -> Manifest:
    labels: Manifest = _workload(name)["spec"]["template"]["metadata"]["labels"]
    return labels


@pytest.mark.parametrize(
    "manifest", [*MANIFESTS, *SECRET_EXAMPLES], ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_manifest_is_valid_and_has_no_unknown_field(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_misspelt_field_would_be_noticed() -> None:
    wrong = {**_one("Service", "soundpost"), "sepc": {}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_rendered_but_the_example_of_secrets() -> None:
    files = {path.name for path in FOLDER.iterdir()}

    assert files == {*KUSTOMIZATION["resources"], "kustomization.yaml", "secret.example.yaml"}


def test_image_is_that_of_this_release() -> None:
    assert {container["image"] for each in MANIFESTS for container in _containers(each)} == {f"soundpost:{__version__}"}


def test_every_variable_is_a_setting_that_can_be_read() -> None:
    files = {f"{name}_FILE" for name in SECRETS}
    # The last is of `worker` alone.
    settings = {name.upper() for name in Settings.model_fields} | files

    assert {name.removeprefix(PREFIX) for name in CONFIG} - settings == set()
    values = {name: value for name, value in CONFIG.items() if not name.endswith("_FILE")}
    given: dict[str, Any] = {name.removeprefix(PREFIX).lower(): value for name, value in values.items()}
    Settings(**{"_env_file": None, **given})


def test_files_of_secrets_are_keys_of_the_secret_where_it_is_mounted() -> None:
    [secret] = [each for each in SECRET_EXAMPLES if each["metadata"]["name"] == "soundpost"]
    url = make_url(secret["stringData"]["database_url"])
    # Without it both drivers look for a file in a home folder, which is not there, and `verify-full` never connects.
    authority = str(url.query["sslrootcert"])
    wanted = {authority, *(value for name, value in CONFIG.items() if name.endswith("_FILE"))}

    for name in WORKLOADS:
        [volume] = [each for each in _pod(_workload(name))["volumes"] if each["name"] == "secrets"]
        [mount] = [each for each in _containers(_workload(name))[0]["volumeMounts"] if each["name"] == "secrets"]
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        assert {f"{mount['mountPath']}/{key}" for key in secret["stringData"]} == wanted


def test_examples_hold_no_secret_that_works() -> None:
    values = [value for each in SECRET_EXAMPLES for value in each["stringData"].values()]

    assert [value for value in values if "CHANGE-ME" not in value and "PASSWORD" not in value] == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_may_do_nothing_that_they_need_not(name: str) -> None:
    pod = _pod(_workload(name))
    [container] = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert _one("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in _dockerfile()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert {source for each in container["envFrom"] for source in each} == {"configMapRef", "secretRef"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_command_exists_and_takes_these_options(name: str) -> None:
    command, *options = _containers(_workload(name))[0]["args"]
    known = {option for each in main.registered_commands if each.callback for option in _options_of(each.callback)}

    assert command in {each.name or each.callback.__name__ for each in main.registered_commands if each.callback}
    assert {option for option in options if option.startswith("--")} <= known


def _options_of(callback: Any) -> set[str]:
    return {f"--{name.replace('_', '-')}" for name in callback.__annotations__}


@pytest.mark.parametrize("name", ["soundpost-serve", "soundpost-worker"])
def test_probes_ask_what_is_served_where_it_is_served(name: str) -> None:
    [container] = _containers(_workload(name))
    [port] = container["ports"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]

    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
    assert {probe["path"] for probe in probes} <= set(document()["paths"])
    assert {probe["port"] for probe in probes} == {port["name"]}
    # The port of `serve` unless another is given, and that of the setting.
    assert str(port["containerPort"]) == (CONFIG["SOUNDPOST_WORKER_PORT"] if name.endswith("worker") else "8000")
    assert "EXPOSE 8000" in _dockerfile()


@pytest.mark.parametrize("name", ["soundpost-serve", "soundpost-worker"])
def test_pod_is_given_the_time_to_drain_and_to_stop(name: str) -> None:
    needed = float(CONFIG["SOUNDPOST_DRAIN_DELAY"]) + float(CONFIG["SOUNDPOST_GRACE"])
    [container] = _containers(_workload(name))
    readiness = container["readinessProbe"]

    assert needed < _pod(_workload(name))["terminationGracePeriodSeconds"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < float(CONFIG["SOUNDPOST_DRAIN_DELAY"])
    assert _workload(name)["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_connections_of_all_pods_fit_into_a_server_as_it_comes() -> None:
    serve, worker = (_workload(f"soundpost-{name}")["spec"] for name in ("serve", "worker"))
    most = serve["replicas"] + _one("HorizontalPodAutoscaler", "soundpost-worker")["spec"]["maxReplicas"]
    surge = sum(each["strategy"]["rollingUpdate"]["maxSurge"] for each in (serve, worker))
    each = int(CONFIG["SOUNDPOST_DATABASE_POOL_SIZE"]) + int(CONFIG["SOUNDPOST_DATABASE_MAX_OVERFLOW"])

    assert (most + surge) * (each + BESIDE_POOL) < 100 - 3


def test_selectors_select_what_they_are_for() -> None:
    serve, worker = _labels("soundpost-serve"), _labels("soundpost-worker")

    assert _one("Service", "soundpost")["spec"]["selector"] == serve
    for name, labels in (("soundpost-serve", serve), ("soundpost-worker", worker)):
        assert _workload(name)["spec"]["selector"]["matchLabels"] == labels
        assert _one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
        assert _one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"] == labels
        [spread] = _pod(_workload(name))["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == labels
    assert _one("HorizontalPodAutoscaler", "soundpost-worker")["spec"]["scaleTargetRef"]["name"] == "soundpost-worker"
    # The autoscaler's number would be overwritten at each upgrade.
    assert "replicas" not in _workload("soundpost-worker")["spec"]


def test_ports_that_are_named_exist() -> None:
    ports = {port["name"] for each in MANIFESTS for one in _containers(each) for port in one.get("ports", ())}
    [served] = _one("Service", "soundpost")["spec"]["ports"]
    policies = [each["spec"] for each in MANIFESTS if each["kind"] == "NetworkPolicy"]
    named = {port["port"] for spec in policies for rule in spec.get("ingress", ()) for port in rule["ports"]}

    assert named == ports
    assert served["targetPort"] in ports
    for ingress in (each for each in MANIFESTS if each["kind"] == "Ingress"):
        [rule] = ingress["spec"]["rules"]
        [path] = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": "soundpost", "port": {"name": served["name"]}}


def test_internet_reaches_the_callbacks_alone() -> None:
    hosts = {}
    for name, prefix, setting in (
        ("soundpost-callbacks", "/callbacks/", "SOUNDPOST_PUBLIC_URL"),
        ("soundpost-api", "/", "SOUNDPOST_BASE_URL"),
    ):
        spec = _one("Ingress", name)["spec"]
        [rule] = spec["rules"]
        assert [path["path"] for path in rule["http"]["paths"]] == [prefix]
        assert CONFIG[setting] == f"https://{rule['host']}"
        assert spec["tls"][0]["hosts"] == [rule["host"]]
        hosts[spec["ingressClassName"]] = rule["host"]

    assert set(hosts) == {"public", "internal"}


def test_nothing_goes_out_to_private_networks_or_the_metadata_of_the_cloud() -> None:
    deny = _one("NetworkPolicy", "default-deny")["spec"]
    [out] = _one("NetworkPolicy", "soundpost-internet")["spec"]["egress"]
    blocks = {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in out["to"]}

    assert (deny["podSelector"], set(deny["policyTypes"])) == ({}, {"Ingress", "Egress"})
    assert out["ports"] == [{"port": 443}]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(blocks["0.0.0.0/0"])
    assert {"fc00::/7", "fe80::/10"} <= set(blocks["::/0"])
    migrating = _one("NetworkPolicy", "soundpost-internet")["spec"]["podSelector"]["matchExpressions"]
    assert _labels("soundpost-migrate")["app.kubernetes.io/component"] not in migrating[1]["values"]


def test_document_names_the_files_and_the_metric_of_the_manifests() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    metrics = _one("HorizontalPodAutoscaler", "soundpost-worker")["spec"]["metrics"]

    named = re.findall(r"`(deploy/kubernetes(?:/[\w.]+)?)`", text)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {each["external"]["metric"]["name"] for each in metrics} <= set(re.findall(r"soundpost_\w+", text))


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()
