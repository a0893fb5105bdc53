"""All experts resident, but written in fewer bits: what quantising the expert weights costs.

Groups are of 128 consecutive weights of a matrix, as the reference model's width of 192 is no
multiple of the 128 that the kernels' int4 needs: values as of `formats`, at other borders.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from moesim.backends.formats import GROUP, Format
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import CapabilityError


def group_bits(form: Format) -> float:
    """Return the bits of one weight, its share of the group's scale included.

    >>> from moesim.backends.formats import INT4
    >>> group_bits(INT4)
    4.125
    """
    scale_bits = 0 if form.scales is None else 8 * form.scales.itemsize
    return form.code_bits + scale_bits / GROUP


def rounded(weights: Tensor, form: Format) -> Tensor:
    """Return weights as a format would give them back.

    Raises:
        CapabilityError: They are no whole number of groups.
    """
    if weights.numel() % GROUP:
        raise CapabilityError(
            f"format {form.name}: a matrix of {weights.numel()} weights is no multiple of {GROUP}"
        )
    codes, scales = form.encode(weights.reshape(-1, GROUP))
    return form.decode(codes, scales).reshape(weights.shape).to(weights.dtype)


@contextmanager
def rounding(store: ExpertStore, form: Format) -> Iterator[None]:
    """Have the store's experts rounded to a format for a while."""
    kept = [blobs_EB.clone() for blobs_EB in store.layers_EB]
    try:
        for expert in range(store.parts.experts * len(store.sizes_L)):
            for matrix in store.matrices(expert).values():
                matrix.copy_(rounded(matrix, form))
        yield
    finally:
        for blobs_EB, before_EB in zip(store.layers_EB, kept, strict=True):
            blobs_EB.copy_(before_EB)
