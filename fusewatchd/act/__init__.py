"""Every call that changes the node, and nothing else does: mounts, aborts, commands.

Called by ``reconcile``, which hands it actions. It may import ``model``, ``linux``, ``workers``,
``parse`` and ``config``.
"""
