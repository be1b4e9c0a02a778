"""Which voxels mattered: importance, encoding, areas, and pictures of maps on the cortex."""
