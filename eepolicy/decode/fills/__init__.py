"""What becomes of the keys and values above an exit."""
