"""Generated worlds: data that anyone can make on the spot, the same bytes from the same seed."""
