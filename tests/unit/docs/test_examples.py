# SPDX-License-Identifier: Apache-2.0
"""The examples for pipelines fit together, and name what there is in this repository."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs/examples"
CRD_FOLDER = "manifests/base"


def documents(path: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return a file's objects by kind and name."""
    text = (EXAMPLES / path).read_text(encoding="utf-8")
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


FLUX = documents("flux/kustomizations.yaml")
ARGO = documents("argocd/applications.yaml")
RIGHTS = documents("tenant/rights.yaml")
NOTEBOOK = documents("tenant/notebook.yaml")


def test_a_pipeline_acts_as_the_account_that_may_exec_into_the_target() -> None:
    (account,) = (name for kind, name in RIGHTS if kind == "ServiceAccount")
    assert FLUX["Kustomization", "team-a"]["spec"]["serviceAccountName"] == account
    (mapped,) = ARGO["AppProject", "team-a"]["spec"]["destinationServiceAccounts"]
    assert mapped["defaultServiceAccount"] == account
    rules = RIGHTS["Role", account]["rules"]
    (exec_rule,) = (rule for rule in rules if rule["resources"] == ["pods/exec"])
    target = NOTEBOOK["DeviceMount", "notebook-gpu"]["spec"]["target"]["podName"]
    assert exec_rule["resourceNames"] == [target]
    assert exec_rule["verbs"] == ["create"]
    assert target == NOTEBOOK["StatefulSet", "notebook"]["metadata"]["name"] + "-0"


def test_the_crd_comes_first_and_is_never_pruned() -> None:
    first, second = FLUX["Kustomization", "devicemount"], FLUX["Kustomization", "team-a"]
    assert second["spec"]["dependsOn"] == [{"name": "devicemount"}]
    assert (first["spec"]["prune"], second["spec"]["prune"]) == (False, True)
    operator, tenant = (ARGO["Application", name] for name in ("devicemount", "team-a"))
    waves = [
        int(one["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        for one in (operator, tenant)
    ]
    assert waves == [0, 1]
    assert "prune" not in operator["spec"]["syncPolicy"]["automated"]
    assert tenant["spec"]["syncPolicy"]["automated"]["prune"]
    for path in (first["spec"]["path"], operator["spec"]["source"]["path"]):
        assert path.endswith(CRD_FOLDER)
    assert (ROOT / CRD_FOLDER / "kustomization.yaml").is_file()
