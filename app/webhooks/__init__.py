"""What we tell callers: bytes that it is given, signed, until they are received or given up."""
