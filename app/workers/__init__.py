"""Background work: each loop claims due rows, calls, and settles."""
