"""The drop-in API: the vendor's own routes and shapes over our tasks, for clients that were written for the vendor."""
