"""The vendor's own API over our tasks: its clients change the base URL and the key, and nothing else."""
