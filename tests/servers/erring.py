"""The demo's server, which a control file makes answer errors and take another type.

``python -m tests.servers.erring CONTROL --mount PATH --backing DIR``: of the words in the file
CONTROL, ``fuse.other 107 all 0``, the first is the type at the start.  The second is the errno, 0
for none, that requests get from then on: all of them, or with ``files`` all but statfs.  The last
is the process that is meant; 0: the one that is started next.
"""

from __future__ import annotations

import functools
import os
import sys

from fusewatchd.demo.fuse import server
from fusewatchd.demo.fuse.passthrough import HANDLERS, Answer, PassThrough
from fusewatchd.demo.fuse.protocol import Opcode

_ALWAYS = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.RELEASE, Opcode.DESTROY}
_named: set[str] = set()
"""The control file, once it has named this process: after that 0 is another one."""


def _words(path: str) -> tuple[str, int, str]:
    with open(path, encoding="ascii") as file:
        fs_type, number, which, pid = file.read().split()
    if int(pid) == os.getpid():
        _named.add(path)
    is_meant = path not in _named if int(pid) == 0 else int(pid) == os.getpid()
    return fs_type, int(number) if is_meant else 0, which


def _answer(
    control: str, opcode: int, file_system: PassThrough, node_id: int, body: memoryview
) -> Answer:
    _, number, which = _words(control)
    if number and (which == "all" or opcode != Opcode.STATFS):
        raise OSError(number, os.strerror(number))
    return _HONEST[opcode](file_system, node_id, body)


_HONEST = dict(HANDLERS)


def main() -> int:
    control, *arguments = sys.argv[1:]
    for opcode in _HONEST.keys() - _ALWAYS:
        HANDLERS[opcode] = functools.partial(_answer, control, opcode)
    # Nobody waits for READY: the one who starts it watches the mount table.
    sys.stdout = open(os.devnull, "w", encoding="ascii")  # noqa: SIM115
    return server.main([*arguments, "--fs-type", _words(control)[0]])


if __name__ == "__main__":
    sys.exit(main())
