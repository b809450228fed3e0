"""What runs by itself: each loop claims due rows, calls, and settles."""
