"""ComfyUI nodes: schema and tooltips, one call into the engine each."""
