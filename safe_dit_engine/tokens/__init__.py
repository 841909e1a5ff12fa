"""Image tokens: how strongly the prompt acts on each, and which are computed (Prompt Token Partitioner)."""
