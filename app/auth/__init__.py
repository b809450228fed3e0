"""Who calls, what is theirs, and how often."""
