"""From a snapshot to a verdict on every bind; pure.

Called by ``reconcile``. It may import ``model``, ``parse``, ``drivers`` and ``config``.
"""
