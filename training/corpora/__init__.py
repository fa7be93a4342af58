"""The data sets: readers in their real layouts, checks, splits, downloads, phantoms.

``CORPORA`` maps a corpus's name to its `Corpus`; everything after this stage goes through it.
"""

from training.corpora import adni, brats2018, lits2017, luna16, mmwhs, msd_heart, packaged
from training.corpora.case import Case, Corpus, CorpusWarning, Finding, Survey
from universal_model_hub.errors import ConfigError

CORPORA: dict[str, Corpus] = {
    module.CORPUS.name: module.CORPUS
    for module in (luna16, lits2017, brats2018, msd_heart, mmwhs, adni, packaged)
}


def get_corpus(name: str) -> Corpus:
    """Return a corpus by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in CORPORA:
        raise ConfigError(f"Expected a corpus of {', '.join(CORPORA)}, got {name!r}.")
    return CORPORA[name]


__all__ = ["CORPORA", "Case", "Corpus", "CorpusWarning", "Finding", "Survey", "get_corpus"]
