"""What is measured: a function for each row, which returns its figures."""
