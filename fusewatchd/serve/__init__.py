"""What clients connect to: metrics, health, the status page and the status socket.

Called by ``daemon``. It may import ``model``, ``config``, ``report``, ``status`` and ``state``.
"""
