"""What is proved of a declaration."""
