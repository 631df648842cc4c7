"""Text of the kubelet and the kernel to values; pure.

Called by all stages. It may import ``model``.
"""
