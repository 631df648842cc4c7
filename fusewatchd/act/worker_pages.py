"""Memory that the daemon shares with its mount workers, so that one that hangs is no riddle.

A worker notes there which action it begins, and what has ended and was not told yet; the
daemon notes which actions it wants back.  Neither needs a system call for it, and a worker
that waits for a file system for ever has said all that it knew.

The pages are made before the fork server, so that every worker has them.
"""

from __future__ import annotations

import mmap
from collections import deque

from fusewatchd.errors import WorkerShortageError

COUNT = 64
"""More than there are workers, those included that nothing can end."""
BYTES = 1 << 17
"""Of one page; what is never written to takes no memory."""

_BEGUN, _WITHDRAWN, _LENGTH = 0, 1, 2
_TEXT = 64


class Page:
    """What the daemon and one worker tell each other.

    Each word has one writer.  The numbers are those of actions; a number is given once.
    """

    def __init__(self, memory: memoryview) -> None:
        """Take ``BYTES`` of shared memory."""
        self._words = memory[:_TEXT].cast("Q")
        self._text = memory[_TEXT:]

    def release(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._text.release()

    def clear(self) -> None:
        """Make it as new."""
        for word in (_LENGTH, _BEGUN, _WITHDRAWN):
            self._words[word] = 0

    # ------------------------------------------------------------------ of the worker

    def begin(self, number: int) -> bool:
        """Say that this action is begun now; False: it is wanted back, and must not be."""
        before = self._words[_BEGUN]
        # In this order: the daemon withdraws first and looks later.
        self._words[_BEGUN] = number
        if self._words[_WITHDRAWN] < number:
            return True
        self._words[_BEGUN] = before
        return False

    def add(self, text: bytes) -> bool:
        """Note what has ended; False: there is no room, nothing was noted."""
        start = self._words[_LENGTH]
        end = start + len(text) + 1
        if end > len(self._text):
            return False
        self._text[start:end] = text + b"\n"
        self._words[_LENGTH] = end
        return True

    def told(self) -> None:
        """Forget what was noted: it was sent."""
        self._words[_LENGTH] = 0

    # ------------------------------------------------------------------ of the daemon

    @property
    def begun(self) -> int:
        """The action that was begun last; 0: none."""
        return self._words[_BEGUN]

    def withdraw(self, number: int) -> None:
        """Have no action up to this one begun any more."""
        self._words[_WITHDRAWN] = number

    def noted(self) -> list[bytes]:
        """Return what has ended and was not sent."""
        return bytes(self._text[: self._words[_LENGTH]]).splitlines()


class Pages:
    """As many pages as there may be workers at the same time."""

    def __init__(self) -> None:
        """Make them; to be called before the fork server is started."""
        self._mapping = mmap.mmap(-1, COUNT * BYTES)
        with memoryview(self._mapping) as memory:
            self._pages = [Page(memory[n * BYTES : (n + 1) * BYTES]) for n in range(COUNT)]
        self._free = deque(range(COUNT))

    def close(self) -> None:
        """Let go of the memory in this process, which is none that uses a page."""
        for page in self._pages:
            page.release()
        self._mapping.close()

    def __getitem__(self, index: int) -> Page:
        return self._pages[index]

    def take(self) -> int:
        """Return the index of a page for a new worker.

        Raises:
            WorkerShortageError: all are in use.
        """
        if not self._free:
            raise WorkerShortageError("no mount worker: too many of them hang")
        index = self._free.popleft()
        self._pages[index].clear()
        return index

    def give_back(self, index: int) -> None:
        """Let the page of a worker that has ended, or is about to, be used again, but last."""
        self._free.append(index)
