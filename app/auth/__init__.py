"""API keys: who calls, what a caller may access, and its rate limit."""
