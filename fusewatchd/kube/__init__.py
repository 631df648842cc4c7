"""Clients of the kubelet and the API server."""
