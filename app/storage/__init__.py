"""Stored files: a folder or an S3 bucket, and the rows that refer to them."""
