"""Axis letters, used in annotations and comments everywhere.

    B clips     R repeats   T TRs       V voxels    G grayordinates
    F frames    C H W image K tokens    D width     N diffusion steps

Images at every boundary: RGB, channels first, uint8 in [0, 255] or float in [0, 1].
Annotations are checked when tests run (``tests/conftest.py`` installs the checker) and cost nothing otherwise.
"""

from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "UInt8"]
