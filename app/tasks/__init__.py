"""What callers ask for, from the order to its last clip."""
