"""fusewatchd keeps the FUSE volumes of Kubernetes pods alive, from outside the pods."""

__version__ = "0.1.0"
