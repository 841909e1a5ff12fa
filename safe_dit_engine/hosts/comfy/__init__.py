"""ComfyUI as host: everything that knows it."""
