"""What the upstream tells us."""
