"""Signed links to one task, for pages in a browser: made here, and read by those who have one."""
