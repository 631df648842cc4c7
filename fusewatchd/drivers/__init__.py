"""What is known of the layouts of FUSE drivers; pure.

``drivers_for`` lists every driver in the order in which they are asked: one look tells what
runs, and the order is no accident of imports.
"""

from __future__ import annotations

from fusewatchd.drivers.base import Driver
from fusewatchd.drivers.fluid import Fluid


def drivers_for(fluid_mount_root: str) -> tuple[Driver, ...]:
    """Return the drivers, the most specific one first."""
    return (Fluid(fluid_mount_root),)


__all__ = ["Driver", "drivers_for"]
