"""What is known of the layouts of FUSE drivers; pure.

``drivers_for`` lists every driver in the order in which they are asked: one look tells what
runs, and the order is no accident of imports.
"""

from __future__ import annotations

from fusewatchd.drivers.base import Driver
from fusewatchd.drivers.directmounts import DirectMounts, EmptyDirs
from fusewatchd.drivers.fluid import Fluid
from fusewatchd.drivers.juicefs import JuiceFS
from fusewatchd.drivers.ossfs import Ossfs
from fusewatchd.drivers.staging import Staging
from fusewatchd.drivers.template import Template
from fusewatchd.settings import DriverSettings


def drivers_for(settings: DriverSettings) -> tuple[Driver, ...]:
    """Return the drivers, the most specific one first; mount roots must be real paths."""
    return (
        EmptyDirs(),
        *map(Template, settings.templates),
        Fluid(settings.fluid.mount_root),
        JuiceFS(settings.juicefs.mount_root),
        Ossfs(),
        Staging(),
        DirectMounts(),
    )


__all__ = ["Driver", "drivers_for"]
