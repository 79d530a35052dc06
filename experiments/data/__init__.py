"""Data sets as arrays, and the examples that training makes of them."""
