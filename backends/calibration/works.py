"""The kernels that a calibration times: attention with router, experts, head, read, product.

They are plain torch operations on one device. Weights are normal random numbers, for products run
faster on zeros, and rotate over more bytes than a cache holds, for a model's weights are cold too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from moesim.backends.calibration.scale import DensePoint, DenseShape, ExpertPoint, ExpertShape

# B requests of a batch, T tokens, D width of the residual stream, I width of an expert.

Work = Callable[[], object]
"""Something to run on a device, again and again."""

_FLOPS_PER_WEIGHT = 2
_MATRICES = 3


class Weights:
    """Makes random tensors of one device and type.

    Args:
        place: Where they lie.
        dtype: Of their elements.
        cold_bytes: How many bytes a rotation takes at least.
    """

    def __init__(self, place: torch.device, dtype: torch.dtype, cold_bytes: int) -> None:
        self.place = place
        self.dtype = dtype
        self.cold_bytes = cold_bytes
        self._generator = torch.Generator(place).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return normal random numbers."""
        return torch.empty(shape, device=self.place, dtype=self.dtype).normal_(
            0.0, scale, generator=self._generator
        )

    def matrix(self, rows: int, columns: int) -> Tensor:
        """Return a weight matrix that keeps the scale of what it multiplies."""
        return self.normal(rows, columns, scale=columns**-0.5)

    def rotation(self, nbytes: int) -> int:
        """Return over how many blocks of this size to rotate; 2 at least."""
        return max(2, -(-self.cold_bytes // nbytes))


def dense_bytes(shape: DenseShape, itemsize: int) -> int:
    """Return the bytes of one layer's attention and router."""
    rows = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_width + shape.experts
    return rows * shape.hidden * itemsize


def kv_bytes(shape: DenseShape, itemsize: int) -> int:
    """Return the bytes of keys and values of one position."""
    return 2 * shape.kv_heads * shape.head_width * itemsize


def expert_bytes(shape: ExpertShape, itemsize: int) -> int:
    """Return the bytes of one expert."""
    return _MATRICES * shape.hidden * shape.width * itemsize


def expert_flops(shape: ExpertShape) -> int:
    """Return the FLOPs of one expert for one token."""
    return _FLOPS_PER_WEIGHT * _MATRICES * shape.hidden * shape.width


def dense_works(point: DensePoint, make: Weights) -> list[Work]:
    """Return one decode step of one layer's attention and router, for each layer of a rotation."""
    itemsize = make.dtype.itemsize
    layer_bytes = dense_bytes(point.shape, itemsize)
    layer_bytes += point.batch * point.context * kv_bytes(point.shape, itemsize)
    return [_dense_work(point, make) for _ in range(make.rotation(layer_bytes))]


def _dense_work(point: DensePoint, make: Weights) -> Work:
    hidden, heads, kv_heads, width, experts = point.shape
    qkv = make.matrix((heads + 2 * kv_heads) * width, hidden)
    out = make.matrix(hidden, heads * width)
    router = make.matrix(experts, hidden)
    norm = make.normal(hidden)
    keys = make.normal(point.batch, kv_heads, point.context, width)
    values = make.normal(point.batch, kv_heads, point.context, width)
    inputs_BD = make.normal(point.batch, hidden)

    def work() -> Tensor:
        mixed = linear(rms_norm(inputs_BD, (hidden,), norm), qkv)
        widths = [number * width for number in (heads, kv_heads, kv_heads)]
        queries, new_keys, new_values = torch.split(mixed, widths, dim=1)
        keys[:, :, -1] = new_keys.view(point.batch, kv_heads, width)
        values[:, :, -1] = new_values.view(point.batch, kv_heads, width)
        seen = scaled_dot_product_attention(
            queries.view(point.batch, heads, 1, width), keys, values, enable_gqa=True
        )
        attended_BD = inputs_BD + linear(seen.reshape(point.batch, heads * width), out)
        logits = linear(rms_norm(attended_BD, (hidden,), norm), router)
        return torch.topk(logits.float().softmax(-1), 2).indices

    return work


def expert_works(point: ExpertPoint, make: Weights) -> list[Work]:
    """Return runs of experts that together go once through all experts of a rotation."""
    size = expert_bytes(point.shape, make.dtype.itemsize)
    runs = make.rotation(size * point.experts)
    inputs_TD = make.normal(point.tokens, point.shape.hidden)
    pairs = [expert_matrices(point.shape, make) for _ in range(runs * point.experts)]
    return [
        _run_work(pairs[begin : begin + point.experts], inputs_TD)
        for begin in range(0, len(pairs), point.experts)
    ]


def expert_matrices(shape: ExpertShape, make: Weights) -> tuple[Tensor, Tensor]:
    """Return gate and up in one matrix, and down."""
    return make.matrix(2 * shape.width, shape.hidden), make.matrix(shape.hidden, shape.width)


def gated_product(inputs_TD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return what an expert computes."""
    gate, up = linear(inputs_TD, gate_up).chunk(2, dim=-1)
    return linear(silu(gate) * up, down)


def _run_work(experts: list[tuple[Tensor, Tensor]], inputs_TD: Tensor) -> Work:
    def work() -> None:
        for gate_up, down in experts:
            gated_product(inputs_TD, gate_up, down)

    return work


def head_works(head: tuple[int, int], make: Weights, host_token: Tensor) -> list[Work]:
    """Return norm, head, choice of the token and its way to the host."""
    hidden, vocabulary = head
    rows = make.rotation(vocabulary * hidden * make.dtype.itemsize)
    norm, inputs_BD = make.normal(hidden), make.normal(1, hidden)

    def work_of(matrix: Tensor) -> Work:
        def work() -> None:
            logits = linear(rms_norm(inputs_BD, (hidden,), norm), matrix)
            host_token.copy_(logits.argmax(-1), non_blocking=True)

        return work

    return [work_of(make.matrix(vocabulary, hidden)) for _ in range(rows)]


def read_work(nbytes: int, make: Weights) -> Work:
    """Return one pass over so many bytes of memory."""
    numbers = torch.ones(nbytes // torch.float32.itemsize, device=make.place)
    return numbers.sum


def product_work(width: int, make: Weights) -> Work:
    """Return one square product."""
    left, right = make.matrix(width, width), make.matrix(width, width)
    return lambda: left @ right
