"""The upstream: how it is called, at what pace, whether submits are held, and what is left on its account."""
