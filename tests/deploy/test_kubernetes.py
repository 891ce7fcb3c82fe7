"""The Kubernetes manifests: valid, confined, and saying what cachesvc takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy import recipes
from tests.deploy.processes import DEPLOY, ROOT

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
DOCUMENTS: list[dict[str, Any]] = [
    document for path in FILES for document in yaml.safe_load_all(path.read_text("utf-8"))
]
VALIDATOR = ROOT / ".clients" / "kubernetes" / "bin" / "kubernetes-validate"
VERSIONS = ("1.30", "1.33", "1.37")  # sidecars and preStop.sleep are on from the first


def one(kind: str, name: str) -> dict[str, Any]:
    """The only object of this kind and name."""
    (found,) = [d for d in DOCUMENTS if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pod_of(owner: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = owner["spec"]["template"]["spec"]
    return spec


OWNERS = [d for d in DOCUMENTS if d["kind"] in ("Deployment", "Job")]
PAIRS = [
    (pod_of(owner), container)
    for owner in OWNERS
    for container in (*pod_of(owner).get("initContainers", ()), *pod_of(owner)["containers"])
]
CONTAINERS = [pytest.param(*pair, id=pair[1]["name"]) for pair in PAIRS]
OURS = [
    pytest.param(*pair, id=pair[1]["name"])
    for pair in PAIRS
    if pair[1]["image"].startswith("cachesvc-")
]
SIDECAR = pod_of(one("Deployment", "your-app"))["initContainers"][0]
SERVICE = pod_of(one("Deployment", "cachesvc"))["containers"][0]
TOML: str = one("ConfigMap", "cachesvc")["data"]["cachesvc.toml"]


@pytest.mark.skipif(not VALIDATOR.exists(), reason="no kubernetes-validate (.clients/kubernetes)")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid_for_kubernetes(version: str) -> None:
    done = subprocess.run(
        [VALIDATOR, "--strict", "-k", version, *FILES],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for resource ") == len(DOCUMENTS)


def test_kustomize_builds_the_service(tmp_path: Path) -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
    assert {"app.yaml", "secrets.example.yaml"} == {
        path.name for path in FILES if path.name not in kustomization["resources"]
    }
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(FOLDER)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    built = list(yaml.safe_load_all(done.stdout))
    images = {
        c["image"]
        for d in built
        if d["kind"] in ("Deployment", "Job")
        for c in pod_of(d)["containers"]
    }
    assert images == {"cachesvc-service:0.1.0"}


@pytest.mark.parametrize(("pod", "container"), OURS)
def test_environment_and_arguments_of_each_container_are_taken(
    pod: dict[str, Any], container: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    toml = None
    if "CACHESVC_CONFIG" in environment:
        url = tmp_path / "url"
        url.write_text(recipes.SECRETS["DATABASE_URL_FILE"])
        toml = TOML.replace("/run/secrets/database/url", str(url))
    settings = recipes.load(environment, container["args"], tmp_path, monkeypatch, toml=toml)
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    listens = {
        "cache": settings.service.listen,
        "admin": settings.service.admin_listen,
        "proxy": settings.proxy.listen,
    }
    for name, port in ports.items():
        assert listens[name] == f"0.0.0.0:{port}"


@pytest.mark.parametrize(("pod", "container"), OURS)
def test_each_file_that_is_named_comes_from_a_secret_that_is_described(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    texts = [variable["value"] for variable in container["env"]]
    if "/etc/cachesvc/cachesvc.toml" in texts:
        texts += re.findall(r'"([^"]+)"', TOML)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    files = [text for text in texts if text.startswith("/run/secrets/")]
    assert files
    for file in files:
        folder, _, key = file.rpartition("/")
        secret = one("Secret", volumes[mounted[folder]]["secret"]["secretName"])
        assert key in secret["stringData"]


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_each_container_is_confined(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_the_proxy_is_a_native_sidecar_that_the_cache_cannot_make_unready() -> None:
    assert SIDECAR["restartPolicy"] == "Always"
    assert SIDECAR["args"] == ["proxy"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        # /readyz is 503 until the policies came: an application must not wait for that.
        assert SIDECAR[probe]["httpGet"] == {"path": "/livez", "port": "proxy"}
    app = pod_of(one("Deployment", "your-app"))["containers"][0]
    (base,) = [v["value"] for v in app["env"] if v["name"] == "OPENAI_BASE_URL"]
    assert base == f"http://127.0.0.1:{SIDECAR['ports'][0]['containerPort']}/v1"


def test_the_service_has_two_replicas_a_budget_and_probes_that_a_database_cannot_kill() -> None:
    deployment = one("Deployment", "cachesvc")
    assert deployment["spec"]["replicas"] >= 2
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    budget = one("PodDisruptionBudget", "cachesvc")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < deployment["spec"]["replicas"]
    assert one("Service", "cachesvc")["spec"]["selector"] == labels
    assert SERVICE["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert SERVICE["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert SERVICE["args"] == ["serve", "--no-migrate"]


def test_a_pod_is_given_longer_than_its_parts_take_to_stop() -> None:
    from cachesvc.proxy import core
    from cachesvc.proxy import run as proxy
    from cachesvc.service import run as service

    proxy_takes = proxy._GRACE_SECONDS + core._DRAIN_SECONDS
    service_takes = service._GRACE_SECONDS + service._DRAIN_SECONDS
    waits = SERVICE["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod_of(one("Deployment", "your-app"))["terminationGracePeriodSeconds"] > proxy_takes
    given = pod_of(one("Deployment", "cachesvc"))["terminationGracePeriodSeconds"]
    assert given > waits + service_takes


def test_network_policies_let_in_only_proxies_and_the_monitoring() -> None:
    closed = one("NetworkPolicy", "cachesvc-nothing-else")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    spec = one("NetworkPolicy", "cachesvc-service")["spec"]
    labels = pod_of_labels("cachesvc")
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    callers = {rule["ports"][0]["port"]: rule["from"][0] for rule in spec["ingress"]}
    assert set(callers) == {8700, 8702}
    wanted = callers[8700]["podSelector"]["matchLabels"]
    assert wanted.items() <= pod_of_labels("your-app").items()
    beside = one("NetworkPolicy", "your-app")["spec"]["ingress"]
    assert [rule for rule in beside if rule["ports"] == [{"port": 8701}] and "from" in rule]


def pod_of_labels(name: str) -> dict[str, str]:
    labels: dict[str, str] = one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    return labels


def test_no_manifest_holds_a_secret() -> None:
    for document in DOCUMENTS:
        if document["kind"] == "Secret":
            assert all("REPLACE_ME" in value for value in document["stringData"].values())
    assert {entry["san"] for entry in tomllib.loads(TOML)["identity"]} == {
        "URI:spiffe://cachesvc/default/client",
        "URI:spiffe://cachesvc/default/admin",
    }
