"""Who still holds files of dead mounts."""
