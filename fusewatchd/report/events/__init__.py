"""Kubernetes Events and the node condition: what is said, when, and about which object."""
