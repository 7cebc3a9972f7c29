"""Late fusion: one prediction from several models, each over its own senses, of which any may be missing."""

from typing import TYPE_CHECKING, Any

from ._fuse import FusedPrediction as FusedPrediction
from ._fuse import fuse_predictions as fuse_predictions

if TYPE_CHECKING:
    from ._estimators import LateFusionClassifier as LateFusionClassifier
    from ._estimators import LateFusionRegressor as LateFusionRegressor

__all__ = ["FusedPrediction", "LateFusionClassifier", "LateFusionRegressor", "fuse_predictions"]


def __getattr__(name: str) -> Any:
    """Import what needs scikit-learn when it is first asked for."""
    if name in ("LateFusionClassifier", "LateFusionRegressor"):
        from . import _estimators

        return getattr(_estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
