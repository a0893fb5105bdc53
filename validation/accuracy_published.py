"""What eMoE's paper says of memory and accuracy, to stand beside what is measured here.

Its accuracy is the semantic likeness, by BERT, of an answer to that of the model with every expert:
of whole answers, not of tokens, and of models 1,000 times as large. No figure of it is on one scale
with a perplexity. From the text of arXiv 2503.06823v1 (March 2025), sections 5.2 to 5.6; its charts
were not read.
"""

from typing import NamedTuple

METRIC = "BERT likeness of answers, %"


class Published(NamedTuple):
    """One published figure.

    Attributes:
        name: Of what.
        saved: Share of the expert memory; of a format, what it saves of bf16.
        low_percent: The least of the models.
        high_percent: The greatest.
        is_placed: Whether the paper says at which memory; else we put it there.
    """

    name: str
    saved: float
    low_percent: float
    high_percent: float
    is_placed: bool = True


EMOE = (
    Published("eMoE", 0.2, 99.6, 99.7),
    Published("eMoE", 0.4, 98.2, 98.8),
    Published("eMoE", 0.8, 93.7, 93.7, is_placed=False),
)
"""The paper gives 93.7 to 99.8 % for 20 to 80 % saved; the least is put at 80 %."""

FORMATS = (
    Published("8 bits", 0.5, 95.2, 95.2),
    Published("4 bits", 0.75, 91.5, 91.5),
)
"""Of Mixtral-8x7B: 57.8 and 30.5 GB in all, where eMoE at 98.2 % takes 64.5."""
