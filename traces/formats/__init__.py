"""One importer per foreign format, found by existing: each file has `sniff` and `read`.

``sniff(path)`` says whether a file or folder looks like the format, by its content; ``read(path)``
returns the trace or raises `TraceError`. The first line of a file's docstring is what
`moesim.traces.formats` lists.
"""
