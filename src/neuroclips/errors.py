"""Errors that users meet. Each message names the file or argument, what came, and what was expected."""


class NeuroClipsError(ValueError):
    """Base of every error that a user can fix."""


class DataError(NeuroClipsError):
    """A file does not hold what it should: wrong shape, length, rate, or values that are not finite."""


class RecipeError(NeuroClipsError):
    """A recipe has an unknown key, a missing key or a value out of range."""


class ArtefactError(NeuroClipsError):
    """A run directory holds something missing, half-written, altered, or made from other inputs."""


class SplitLeakError(NeuroClipsError):
    """Test clips reached a place where models are fitted or choices are made."""


class MissingExtraError(NeuroClipsError):
    """An optional dependency is not installed; the message says which extra brings it."""
