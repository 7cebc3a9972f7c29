"""One transformer over one token sequence: text, images and sound, any to any."""

from .decode import generate as generate
from .decode import log_likelihood as log_likelihood
from .model import Decoding as Decoding
from .model import Model as Model
from .network import Config as Config
from .network import init as init
from .network import logits as logits
from .network import loss as loss
from .sequence import Batch as Batch
from .sequence import Modality as Modality
from .sequence import Row as Row
from .sequence import Vocabulary as Vocabulary
from .sequence import fill_row as fill_row
