"""A run's arrays as tables: what the outermost loops do first."""

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    COMMAND_COLUMNS,
    COPY_COLUMNS,
    DETAIL_COLUMNS,
    EXPERT_COLUMNS,
    KERNEL_COLUMNS,
    LAYER_COLUMNS,
    POOL_COLUMNS,
    REST_COLUMNS,
    STEP_COLUMNS,
    Run,
)
from moesim.simulator.engines.compiled.tables import table


@jit
def opened(run: Run) -> Run:
    """Return the tables of a run's arrays."""
    return Run(
        table(run.begins_N1, "begins_N1", 0),
        table(run.expert_U, "expert_U", 0),
        table(run.detail_U3, "detail_U3", DETAIL_COLUMNS),
        table(run.next_use_U, "next_use_U", 0),
        table(run.wish_begins, "wish_begins", 0),
        table(run.wished_W, "wished_W", 0),
        table(run.attention_GC, "attention_GC", 0),
        table(run.expert_CT, "expert_CT", 0),
        table(run.steps, "steps", STEP_COLUMNS),
        table(run.layers, "layers", LAYER_COLUMNS),
        table(run.experts, "experts", EXPERT_COLUMNS),
        table(run.last_use_X, "last_use_X", 0),
        table(run.rest, "rest", REST_COLUMNS),
        table(run.pools, "pools", POOL_COLUMNS),
        table(run.marks, "marks", 0),
        table(run.scores, "scores", 0),
        table(run.lists, "lists", 0),
        table(run.commands, "commands", COMMAND_COLUMNS),
        table(run.copies, "copies", COPY_COLUMNS),
        table(run.kernels, "kernels", KERNEL_COLUMNS),
        table(run.state, "state", 0),
    )
