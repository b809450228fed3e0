"""The pages of keys, of what each may spend and has spent, and of the audit log."""
