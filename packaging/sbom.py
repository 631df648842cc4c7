"""Bill of materials of a release: CycloneDX 1.5 in JSON, the same bytes for the same source.

What the rpm brings along is listed with version and hash; what the deb and the wheel ask others
for is listed by name, for the distribution or pip decides on the version.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_PIN = re.compile(r"^([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
_DEPENDENCY = re.compile(r"""^ +['"]([a-z-]+)""", re.MULTILINE)


def bill_of_materials(tree: Path, version: str, epoch: int) -> str:
    """Return the document for a source tree."""
    purl = f"pkg:generic/fusewatchd@{version}"
    pins = _PIN.findall((tree / "packaging/rpm/vendor.txt").read_text())
    bundled = [_bundled(name.replace("_", "-"), *rest) for name, *rest in pins]
    known = {component["name"] for component in bundled}
    project = (tree / "pyproject.toml").read_text()
    found = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    asked = set(_DEPENDENCY.findall(found[1])) if found else {"dependencies"}
    if missing := asked - known:
        raise SystemExit(f"packaging/rpm/vendor.txt lacks {', '.join(sorted(missing))}")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, purl)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": purl,
                "name": "fusewatchd",
                "version": version,
                "purl": purl,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": bundled,
        "dependencies": [{"ref": purl, "dependsOn": [c["bom-ref"] for c in bundled]}],
    }
    return json.dumps(document, indent=2) + "\n"


def _bundled(name: str, version: str, digest: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "description": "This version is in the rpm; deb and wheel take what is there.",
    }
