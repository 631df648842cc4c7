"""The private mount namespace with sources, pods and containers."""
