"""What a trace says about itself: the JSON header, checked when it is made.

The header holds everything that isn't an array: the model and its shape, how the routes came to
be, and one declaration for each optional signal. Unknown keys are refused, so a misspelt one
can't pass.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Evidence = Literal["recorded", "twin", "synthetic"]
KnownAt = Literal["request_arrived", "step_begin", "layer_routed", "layer_end", "step_end"]
CostResource = Literal["gpu", "host", "cpu", "none"]


class SignalSpec(BaseModel):
    """One optional array of a trace: where it was taken and when a policy may read it.

    Attributes:
        tap: Where in the model the values come from, such as ``residual after attention``.
        known_at: The event of the same row (and layer, if the array has an L axis) from which the
            values exist; a view refuses them earlier. For an R array: of the same request.
        producer: Who makes the values when the model serves, such as ``router`` or ``predictor:x``.
        cost_resource: What the producer occupies; the amount is in the hardware profile.
        evidence: ``recorded`` from the model, or ``derived`` from other arrays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: str = Field(min_length=1)
    known_at: KnownAt
    producer: str = Field(min_length=1)
    cost_resource: CostResource = "none"
    evidence: Literal["recorded", "derived"] = "recorded"


class SelectionRule(BaseModel):
    """How the router turns ``router_probs_TLE`` into expert ids and gates.

    The k largest of ``probability + bias`` are chosen, after the groups have been cut to the best;
    the gates are their probabilities, normalised or not, times the scale. Softmax with
    ``normalise`` is also the rule of routers that take the softmax of the chosen logits only
    (gpt-oss), since the two are equal.

    Attributes:
        score: What made the probabilities of the logits; the check does not need it.
        normalise: Whether the gates of a token are divided by their sum.
        scale: Factor on the gates (DeepSeek's ``routed_scaling_factor``).
        groups: Number of equal groups of experts; 1 where the router has none.
        groups_kept: How many groups a token may choose from.
        group_score: A group's best expert (DeepSeek-V2), or the sum of its two best (V3).
        bias_LE: What is added for the choice and not for the gates; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["softmax", "sigmoid"]
    normalise: bool
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    groups: int = Field(default=1, ge=1)
    groups_kept: int = Field(default=1, ge=1)
    group_score: Literal["max", "top2_sum"] = "max"
    bias_LE: tuple[tuple[float, ...], ...] | None = None

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.groups_kept > self.groups:
            raise ValueError(
                f"groups_kept is {self.groups_kept}, but there are {self.groups} groups"
            )
        return self


class ClosedLoop(BaseModel):
    """Under what the routes of a lossy system came to be: they are those of no other.

    The system sent tokens to other experts than the router chose, and later layers routed what came
    of that. The trace keeps what the routers chose; replayed under the same policies and budget, in
    the same order, the same choices are changed.

    Attributes:
        system: What bundles the policies, or ``custom``.
        policies: Spec of the policy of each axis.
        budget_bytes: Room for experts, staging included.
        slots: How many of the largest fit into it.
        seed: Of the policies' random streams.
        order: `RoutingTrace.order_hash` of the requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    policies: dict[str, str]
    budget_bytes: int = Field(ge=0)
    slots: int = Field(ge=0)
    seed: int = 0
    order: str


class TraceHeader(BaseModel):
    """The description that travels with the arrays of a trace.

    Attributes:
        layer_ids: Index in the decoder of each MoE layer, ascending; its length is L.
        experts: Routed experts of a layer, E; shared experts are not counted.
        top_k: Experts chosen for a token in a layer, K.
        evidence: ``recorded`` from the model named, from a narrow ``twin`` with the same routing
            shape, or ``synthetic``.
        recorder: Name and version of the program that wrote the routes.
        selection: The router's rule; None where it is unknown or not of the form that
            `SelectionRule` can say. With ``router_probs_TLE`` kept, `RoutingTrace.validate` checks
            that the rule reproduces ids and gates.
        expert_bytes: Bytes of one expert in each MoE layer, where the trace knows them.
        dense_bytes: Bytes of all else in each MoE layer, where the trace knows them.
        teacher_forced: Whether the text was given and no token was sampled by the model.
        closed_loop: The lossy system under which the routes were recorded; None for a whole model.
        signals: One entry for each array in `RoutingTrace.signals`, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str = Field(min_length=1)
    revision: str | None = None
    layer_ids: tuple[int, ...] = Field(min_length=1)
    experts: int = Field(ge=1, le=32_767)
    top_k: int = Field(ge=1)
    evidence: Evidence
    dtype: str | None = None
    tokenizer_hash: str | None = None
    sampling: dict[str, str | float | int | bool] = Field(default_factory=dict)
    recorder: str | None = None
    source: str | None = None
    licence: str | None = None
    notes: str | None = None
    selection: SelectionRule | None = None
    expert_bytes: tuple[int, ...] | None = None
    dense_bytes: tuple[int, ...] | None = None
    teacher_forced: bool = False
    closed_loop: ClosedLoop | None = None
    signals: dict[str, SignalSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        layers = len(self.layer_ids)
        if self.layer_ids[0] < 0 or any(
            later <= earlier
            for earlier, later in zip(self.layer_ids, self.layer_ids[1:], strict=False)
        ):
            raise ValueError("layer_ids must be ascending and start at 0 or above")
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, but a layer has {self.experts} experts")
        for key, values, least in (
            ("expert_bytes", self.expert_bytes, 1),
            ("dense_bytes", self.dense_bytes, 0),
        ):
            if values is not None and len(values) != layers:
                raise ValueError(f"{key} has {len(values)} entries for {layers} MoE layers")
            if values is not None and min(values) < least:
                raise ValueError(f"{key} has the entry {min(values)}, which is below {least}")
        if self.selection is not None:
            self._check_selection(self.selection)
        return self

    def _check_selection(self, rule: SelectionRule) -> None:
        layers, experts = len(self.layer_ids), self.experts
        if experts % rule.groups:
            raise ValueError(f"{experts} experts do not divide into {rule.groups} groups")
        if rule.bias_LE is not None and (
            len(rule.bias_LE) != layers or any(len(row) != experts for row in rule.bias_LE)
        ):
            raise ValueError(f"selection.bias_LE must be {layers} rows of {experts} numbers")


def first_problem(error: ValidationError) -> str:
    """Return the first finding of pydantic as one line: key, what is wrong, the value."""
    finding = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in finding["loc"]) or "header"
    message = finding["msg"].removeprefix("Value error, ")
    if not finding["loc"]:
        return message
    return f"{where}: {message[:1].lower()}{message[1:]}, got {finding['input']!r:.80}"
