"""Fills a snapshot of the node; reads only.

Called by ``reconcile`` and ``daemon``. It may import ``model``, ``parse``, ``config``, ``linux``
and ``workers``, and neither ``act`` nor a rule.
"""
