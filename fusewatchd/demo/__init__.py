"""``fusewatchd demo`` and the stage of the tests: a node in a private mount namespace.

Only ``cli`` imports it. It may import ``linux`` and ``serve.status_socket``: no code of the daemon.
"""
