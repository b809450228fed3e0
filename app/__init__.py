"""Soundpost: keeps what a paid, asynchronous sound API makes, and tells whoever asked for it."""

__version__ = "0.1.0"
