"""Which steps of a run are computed, and what stands in for the others."""
