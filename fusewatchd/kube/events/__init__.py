"""Events and who they are about, on their way to the API server."""
