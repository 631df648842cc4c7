"""Paths of sources with named fields in braces, as the configuration has them; pure.

A template names one path for one volume and never a choice: two volumes that differ in a field
must give two paths.  So a directory name holds one field at most (``{namespace}-{volume}`` would
be the same for ``a-b`` and ``c`` as for ``a`` and ``b-c``), and what a field stands for is one
directory name: a handle with a slash fits no template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ROOT_FIELD = "kubelet_root"
"""The kubelet's directory; a path, so it can only come first."""
FIELDS = ("volume_handle", "volume_handle_sha256", "volume", "namespace", "pod_uid")
CSI_FIELDS = frozenset({"volume_handle", "volume_handle_sha256"})

_BRACES = re.compile(r"\{([^{}]*)\}")


def problem_of(template: str) -> str:
    """Return what is wrong with a template; empty when it can be filled in."""
    text = template
    if text.startswith(f"{{{ROOT_FIELD}}}/"):
        text = text[len(ROOT_FIELD) + 2 :]
    if not text.startswith("/"):
        return f"it must begin with / or {{{ROOT_FIELD}}}/"
    for part in text[1:].split("/"):
        if part in ("", ".", ".."):
            return "it has an empty directory name, . or .."
        for field in _BRACES.findall(part):
            if field not in FIELDS:
                return f"there is no field {{{field}}}; there are {', '.join(FIELDS)}"
        if len(_BRACES.findall(part)) > 1:
            return f"two fields in one directory name cannot be told apart: {part}"
        if set(_BRACES.sub("", part)) & set("{}"):
            return f"a brace without its other one: {part}"
    return ""


def fields_of(template: str) -> frozenset[str]:
    """Return the fields that a template needs."""
    return frozenset(_BRACES.findall(template))


def fill(template: str, values: Mapping[str, str], kubelet_root: str) -> str:
    """Return the path; every field that the template has must be among the values."""
    whole = {**values, ROOT_FIELD: kubelet_root}
    return _BRACES.sub(lambda match: whole[match[1]], template)
