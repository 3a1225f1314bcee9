"""Fields of KubeRay's RayCluster (ray.io/v1, KubeRay 1.6) that our file uses, as a JSON schema closed to all others.

Written by hand from https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html. Pod templates are held to
Kubernetes' own schema beside it.
"""

from typing import Any

COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = {"type": "object", "required": ["spec"]}


def record(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object of these fields and no other."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


HEAD = record(
    ["template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
WORKERS = record(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName={"type": "string"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
SPEC = record(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    authOptions=record([], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAYCLUSTER = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"type": "object", "required": ["name"]},
    spec=SPEC,
)
