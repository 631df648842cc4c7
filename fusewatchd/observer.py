"""Fills a snapshot from every reader of the node; the reading side of the shell.

Each reader keeps what it saw last and is asked again only when something says that it may be
out of date, so one look costs what has changed and not what there is.  A reader that fails
leaves a gap in the snapshot and is never a reason not to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusewatchd.connections import Connections, Question, credentials_of
from fusewatchd.decision import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.kubeletdir import parse_bind_path
from fusewatchd.linux import fusectl
from fusewatchd.linux.mounttable import MountTableSource
from fusewatchd.linux.namespaces import NamespaceScanner
from fusewatchd.linux.probe import Credentials, ProbePool
from fusewatchd.linux.volumedata import read_volume_data
from fusewatchd.model import (
    Answer,
    BindKind,
    Device,
    FuseServer,
    Gap,
    Mount,
    MountNamespace,
    Pod,
    VolumeData,
)
from fusewatchd.mountinfo import MountTable
from fusewatchd.snapshot import Snapshot
