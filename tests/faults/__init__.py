"""Breaking things for real, and checking that nothing was lost, paid twice or taken back."""
