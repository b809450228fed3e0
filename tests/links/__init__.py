"""Signed links to one task, and the pages of other origins that follow them."""
