"""Synthetic scans: random bodies as label maps, rendered as CT and MR, in six corpora's layouts."""

from training.corpora.phantom.corpus import LAYOUTS, planted_traps, write_corpus
from training.corpora.phantom.render_ct import CT_SCANNERS, CTScanner, render_ct
from training.corpora.phantom.render_mr import MR_SCANNERS, SEQUENCES, MRScanner, render_mr
from training.corpora.phantom.subject import KINDS, PhantomSubject, make_subject
from training.corpora.phantom.tissues import TISSUES

__all__ = [
    "CT_SCANNERS",
    "KINDS",
    "LAYOUTS",
    "MR_SCANNERS",
    "SEQUENCES",
    "TISSUES",
    "CTScanner",
    "MRScanner",
    "PhantomSubject",
    "make_subject",
    "planted_traps",
    "render_ct",
    "render_mr",
    "write_corpus",
]
