"""Tasks: requests for sounds, from their creation to their last clip."""
