"""Series for Prometheus."""
