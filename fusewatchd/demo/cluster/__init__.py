"""A small kubelet and API server on loopback."""
