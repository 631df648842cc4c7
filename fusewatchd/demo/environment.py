"""How a Python process that is started here finds this package."""

from __future__ import annotations

import os

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def python_environment(package_parent: str = _PACKAGE_PARENT) -> dict[str, str]:
    """Return the environment in which a child finds this package wherever it is run from."""
    return {**os.environ, "PYTHONPATH": package_parent, "PYTHONSAFEPATH": "1"}
