"""The process that holds FUSE connections over the death of their servers, fusewatchd-keeper(8).

``cli`` starts it, the daemon talks to it by ``protocol`` and ``client``.  It imports no stage,
reads no file but those of ``/proc``, and outlives upgrades of the daemon.
"""
