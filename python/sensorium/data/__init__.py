"""Real data that arrives with pip."""

from .corpus import Corpus as Corpus
from .corpus import Split as Split
from .digits import digits as digits
from .digits import stratified_split as stratified_split
from .mnist import mnist as mnist
from .speech import WORDS as WORDS
from .speech import Utterance as Utterance
from .speech import speech as speech
from .speech import utterances as utterances
