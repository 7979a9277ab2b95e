"""Language models: scoring options, writing answers, and what a task's prediction is."""

from coadapt.language.answering import answer_rows
from coadapt.language.generating import PROMPTS_AT_ONCE, generate_texts
from coadapt.language.scoring import OPTIONS_AT_ONCE, score_options, score_references

__all__ = [
    "OPTIONS_AT_ONCE",
    "PROMPTS_AT_ONCE",
    "answer_rows",
    "generate_texts",
    "score_options",
    "score_references",
]
