"""What the log says of cycles."""
