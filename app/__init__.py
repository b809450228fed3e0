"""Soundpost: submits tasks to a paid, asynchronous sound API, stores the results, and delivers them by webhook."""

__version__ = "0.1.0"
