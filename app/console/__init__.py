"""The web console at `/console`: what an operator and a caller see of tasks, webhooks and the queue, in a browser."""
