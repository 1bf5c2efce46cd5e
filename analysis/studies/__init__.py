"""Studies of layers, heads, drift and policies; each gives a table and a figure."""
