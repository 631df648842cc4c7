"""What is known of the layouts of FUSE drivers; pure.

A driver is a module of this package with a function ``driver(settings)``: nothing else has to be
told of it.  Each knows its volumes by the name of their CSI driver, so among these modules the
order does not matter; those that answer for whoever is left come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from fusewatchd.config.settings import DriverSettings
from fusewatchd.drivers.base import Driver
from fusewatchd.drivers.direct_mounts import DirectMounts, EmptyDirs
from fusewatchd.drivers.staging import Staging
from fusewatchd.drivers.template import Template


def drivers_for(settings: DriverSettings) -> tuple[Driver, ...]:
    """Return the drivers, the most specific one first; mount roots must be real paths."""
    return (
        EmptyDirs(),
        *map(Template, settings.templates),
        *_drivers_with_a_module(settings),
        Staging(),
        DirectMounts(),
    )


def _drivers_with_a_module(settings: DriverSettings) -> Iterator[Driver]:
    for name in sorted(found.name for found in iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        if hasattr(module, "driver"):
            yield module.driver(settings)


__all__ = ["Driver", "drivers_for"]
