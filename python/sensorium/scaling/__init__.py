"""Scaling laws: estimators that converge and say how sure they are, and what to do with a fit."""

from .laws import BrokenPowerLaw as BrokenPowerLaw
from .laws import ChinchillaLaw as ChinchillaLaw
from .laws import DataConstrainedLaw as DataConstrainedLaw
from .laws import InverseRootLaw as InverseRootLaw
from .laws import JointComputeLaw as JointComputeLaw
from .laws import KaplanLaw as KaplanLaw
from .laws import OverTrainingLaw as OverTrainingLaw
from .laws import PowerLaw as PowerLaw
from .laws import SaturatingExponential as SaturatingExponential
from .laws import Sigmoid as Sigmoid
from .passk import best_of_k as best_of_k
from .passk import majority_at_k as majority_at_k
from .passk import pass_at_k as pass_at_k
