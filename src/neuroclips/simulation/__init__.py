"""A simulated subject whose truth we know: the picture-book film it watches, its eyes, its cortex, its scans."""
