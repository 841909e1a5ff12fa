"""The demo model: its pictures and captions, its training, its judge."""
