"""SQLite and PostgreSQL behind one behaviour."""
