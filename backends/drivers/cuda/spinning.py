"""How the host waits for a GPU: it spins, and is watched while it does.

It waits in one place, for what the model's stream computes (a router's choice, a token): it looks
whether that has come, and tells the controller of copies meanwhile if the controller could answer.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.backends.base import RealDriver
from moesim.backends.drivers.cuda.machine import DeviceError, gpu, reason
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.drivers.cuda.streams import new_event
from moesim.backends.experts import LayerWork
from moesim.simulator.controller import Controller
from moesim.simulator.messages import StepBegan
from moesim.simulator.terms import Phase

READ_BYTES = 2**16
"""What a router's choice is read through; a longer prompt makes it larger."""
LOOKS_PER_CHECK = 4096
"""A GPU that failed posts nothing: the host asks for it after so many looks, some ms."""


class SpinningDriver(RealDriver[LayerWork]):
    """The part of a CUDA driver that waits.

    Attributes:
        device: The GPU.
        stream: The model's.

    Raises:
        UnavailableError: There is no GPU.
    """

    def __init__(self, controller: Controller) -> None:
        self.device = gpu()
        super().__init__(controller)
        self.stream: Any = torch.cuda.current_stream()
        self._read_B = pinned_bytes(READ_BYTES)
        self._settled = new_event(has_time=False)
        self._looked_ns = 0

    def begin_step(self, began: StepBegan) -> None:
        """Report that a forward pass begins; in decode, watch over the loop's gaps."""
        self._looked_ns = 0 if Phase.PREFILL in began.phases else self.clock_ns()
        super().begin_step(began)

    def wait_until(self, has_come: Callable[[], bool]) -> None:
        """Spin until something has come, polling as long as the controller could answer.

        Raises:
            DeviceError: The GPU failed meanwhile.
        """
        controller, looks = self._controller, 0
        while not has_come():
            if controller.listens or self._asks:
                self.watch()
                facts = self.poll()
                if facts:
                    self.tell(facts)
                    continue
            self.sleep()
            looks += 1
            if looks % LOOKS_PER_CHECK == 0:
                self.ask_gpu(self.stream.query)

    def read(self, values: Any) -> NDArray[np.int64]:  # noqa: ANN401  a tensor, to the base class
        """Bring whole numbers to the host through page-locked memory, polling meanwhile."""
        nbytes = values.numel() * values.element_size()
        if self._read_B.numel() < nbytes:
            self._read_B = pinned_bytes(2 * nbytes)
        host = self._read_B[:nbytes].view(values.dtype)
        host.copy_(values, non_blocking=True)
        self.settle()
        numbers: NDArray[np.int64] = host.numpy().copy()
        return numbers

    def settle(self) -> None:
        """Wait until the model's stream has done what it was told, polling meanwhile.

        Raises:
            DeviceError: It failed.
        """
        self.ask_gpu(lambda: self._settled.record(self.stream))
        self.wait_until(lambda: bool(self.ask_gpu(self._settled.query)))

    def ask_gpu(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the call returns
        """Return what a call of CUDA returns.

        Raises:
            DeviceError: The GPU failed.
        """
        try:
            return call()
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error

    def look(self) -> None:
        """Note how long the host looked at nothing, in decode."""
        if self._looked_ns:
            now_ns = time.perf_counter_ns() - self._origin_ns
            gap_ns = now_ns - self._looked_ns
            self._looked_ns = now_ns
            self.timings.longest_gap_ns = max(self.timings.longest_gap_ns, gap_ns)
