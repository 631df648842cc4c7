"""The process of an ordinary user in which the daemon talks with strangers.

Called by ``daemon``, which starts it. It may import ``model``, ``parse``, ``config``, ``report``,
``state``, ``status``, ``kube``, ``serve`` and ``workers``.
"""
