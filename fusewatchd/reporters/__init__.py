"""What tells people and machines about finished cycles."""
