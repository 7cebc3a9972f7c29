"""Exceptions. Each inherits what a user would catch anyway: ``except ValueError`` still works."""


class SensoriumError(Exception):
    """Base of everything that sensorium raises on purpose."""


class ArgumentError(SensoriumError, ValueError):
    """An argument has a value that the function cannot use."""


class ShapeError(ArgumentError):
    """An array has a wrong number of dimensions or a wrong size."""


class DTypeError(SensoriumError, TypeError):
    """An array has an element type that the function does not take."""


class ManifestError(ArgumentError):
    """A manifest has a row that cannot be read."""


class CheckpointError(ArgumentError):
    """A model file is damaged, hostile, or not a model file."""


class MemoryLimitError(SensoriumError, MemoryError):
    """Something would need more memory than it may have, or than there is."""


class MissingExtraError(SensoriumError, ImportError):
    """A package that only some functions need is not installed; the message says how to install it."""


class SearchError(SensoriumError, RuntimeError):
    """A search has nothing to show: every call failed. ``outcome`` says what was tried and what it cost."""

    outcome: object = None


class TraceError(ArgumentError):
    """A trace cannot be read, belongs to another search, or holds what cannot be written."""
