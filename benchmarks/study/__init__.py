"""A blind study of pictures."""
