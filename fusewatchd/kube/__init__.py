"""HTTP clients of the kubelet and the API server.

Called by ``daemon.cluster`` and ``doctor``, in threads of their own. It may import ``model``,
``parse``, ``config``, ``state``, and of ``report`` what an Event is.
"""
