"""Block sizes of the kernels: fixed by the shape, never by a search on the user's machine.

Block sizes decide the order in which floats are added. They depend on layout, format, width and
piece alone: never on how many tokens there are or on which part of an expert is computed.
They are the best, or within a few percent, of 266 that ``benchmarks/expert_kernels.py --sweep``
timed on an H100 for the shapes of OLMoE, Qwen3-30B-A3B and Mixtral-8x7B at one token.
"""

from dataclasses import dataclass, replace

from moesim.backends.formats import GROUP, INT4
from moesim.backends.layouts import ExpertLayout


@dataclass(frozen=True, slots=True)
class Blocks:
    """How one kernel is cut.

    Attributes:
        j: Rows of the intermediate dimension of a block.
        d: Elements of the width of a block.
        warps: Of 32 threads, per program.
        stages: Loads that are under way at once.
    """

    j: int
    d: int
    warps: int
    stages: int


GATE_UP = Blocks(j=1, d=2048, warps=4, stages=1)
DOWN_BY_MATRIX = Blocks(j=1024, d=8, warps=4, stages=1)
DOWN_BY_ROW = Blocks(j=16, d=512, warps=4, stages=3)
DOWN_INT4 = Blocks(j=16, d=256, warps=4, stages=1)
DOWN_LONG = Blocks(j=32, d=256, warps=4, stages=3)
"""By row, whatever the format, where a program walks over more than ``LONG_PIECE`` rows."""
LONG_PIECE = 1024

GROUPED_TOKENS = 64
GROUPED_GATE_UP = Blocks(j=64, d=64, warps=4, stages=3)
GROUPED_DOWN = Blocks(j=64, d=64, warps=4, stages=3)


def is_for_decode(tokens: int, top_k: int, experts: int) -> bool:
    """Return whether a layer's products go to `decode_experts` rather than `grouped_experts`.

    The first reads an expert for every row, the second once for each tile of rows. The answer
    depends on the number of tokens alone, since the two round differently.
    """
    return tokens * top_k <= experts


def gate_up_blocks(layout: ExpertLayout) -> Blocks:
    """Return how a decode launch cuts gate and up; what a width cannot fill goes to more rows."""
    d = fitted(GATE_UP, layout).d
    return fitted(replace(GATE_UP, j=GATE_UP.j * max(1, GATE_UP.d // d)), layout)


def down_blocks(layout: ExpertLayout) -> Blocks:
    """Return how a decode launch cuts down."""
    if layout.name == "by-matrix":
        return fitted(DOWN_BY_MATRIX, layout)
    if layout.piece > LONG_PIECE:
        return fitted(DOWN_LONG, layout)
    return fitted(DOWN_INT4 if layout.format == INT4 else DOWN_BY_ROW, layout)


def fitted(blocks: Blocks, layout: ExpertLayout) -> Blocks:
    """Return blocks no larger that divide a layout's piece and width: nothing is masked."""
    smallest = GROUP if layout.format == INT4 else 1
    return Blocks(
        j=_dividing(layout.piece, blocks.j),
        d=max(smallest, _dividing(layout.width, blocks.d)),
        warps=blocks.warps,
        stages=blocks.stages,
    )


def _dividing(length: int, at_most: int) -> int:
    """Return the largest power of two that divides a length, up to a limit."""
    return min(length & -length, at_most)
