"""Callbacks: messages from the upstream about its tasks."""
