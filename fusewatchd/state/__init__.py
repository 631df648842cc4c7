"""What outlives the daemon: the state file and the runtime directory.

Called by ``daemon``. It may import ``model``, ``parse`` and ``diagnose``.
"""
