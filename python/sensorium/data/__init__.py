"""Real data that arrives with pip."""

from .corpus import Corpus as Corpus
from .corpus import Split as Split
from .digits import digits as digits
from .digits import stratified_split as stratified_split
from .manifest import Problem as Problem
from .manifest import load_manifest as load_manifest
from .manifest import read_audio as read_audio
from .manifest import read_image as read_image
from .mnist import mnist as mnist
from .speech import WORDS as WORDS
from .speech import Utterance as Utterance
from .speech import speech as speech
from .speech import utterances as utterances
