"""Inference-time compute over any generator and verifier, within one budget and with one record."""

from .budget import Budget as Budget
from .budget import Cost as Cost
from .budget import Entry as Entry
from .calling import CallPolicy as CallPolicy
from .outcome import Candidate as Candidate
from .outcome import Failure as Failure
from .outcome import Outcome as Outcome
from .protocol import Critic as Critic
from .protocol import Feedback as Feedback
from .protocol import Generator as Generator
from .protocol import Reply as Reply
from .protocol import RetryLater as RetryLater
from .protocol import Revision as Revision
from .protocol import Verifier as Verifier
from .strategies import best_of_n as best_of_n
from .strategies import majority_vote as majority_vote
from .strategies import overturn_probability as overturn_probability
from .trace import Call as Call
from .trace import Node as Node
from .trace import Trace as Trace
