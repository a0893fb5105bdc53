"""Any trace, whatever wrote it: recognised by its content, read whole, checked.

A format is a file in ``formats/``; being there is all the registration it needs. They are asked in
the order of their names, after the native format.
"""

import importlib
import os
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import moesim.traces.formats
from moesim.traces import chunks, store
from moesim.traces.errors import TraceError
from moesim.traces.formats import mapped
from moesim.traces.schema import RoutingTrace

NATIVE, CHUNKS = "moesim", "moesim-chunks"


def load(path: str | os.PathLike[str], *, mapping: Mapping[str, str] | None = None) -> RoutingTrace:
    """Read and check a trace; the file's suffix does not matter.

    A chunked trace was checked when it was written: its chunks are compared with their hashes when
    they are opened.

    Args:
        path: A file, or a folder of those formats that are folders.
        mapping: Our keys to columns of a CSV or JSONL, as `parse_mapping` makes it; then the
            content is not asked.

    Raises:
        TraceError: There is no such file, no format knows it, or it breaks a promise of
            `RoutingTrace`; always one line.
    """
    source = Path(path)
    if not source.exists():
        raise TraceError(f"{source}: no such file or folder; give the path of a trace")
    if source.is_file() and source.stat().st_size == 0:
        raise TraceError(f"{source}: the file is empty; record or copy it again")
    if mapping is None and chunks.sniff(source):
        return chunks.read_chunks(source)
    try:
        trace = _read(source, mapping)
    except OSError as error:
        raise TraceError(f"{source}: cannot be read ({error.strerror}); check the file") from error
    trace.validate(str(source))
    return trace


def formats() -> dict[str, str]:
    """Return each readable format with the first line of its description."""
    found = {
        name: (module.__doc__ or "").partition("\n")[0]
        for name, module in ((NATIVE, store), (CHUNKS, chunks))
    }
    return found | {
        module.__name__.rpartition(".")[2]: (module.__doc__ or "").partition("\n")[0]
        for module in _modules()
    }


def _read(source: Path, mapping: Mapping[str, str] | None) -> RoutingTrace:
    if mapping is not None:
        return mapped.read(source, mapping)
    if store.sniff(source):
        return store.read(source)
    for module in _modules():
        if module.sniff(source):
            trace: RoutingTrace = module.read(source)
            return trace
    raise TraceError(
        f"{source}: not a trace of a known format ({', '.join(formats())}); "
        "for a CSV or JSONL name the columns: --map token=COL,layer=COL,experts=COL"
    )


def _modules() -> Iterator[ModuleType]:
    package = moesim.traces.formats
    for info in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{info.name}")
