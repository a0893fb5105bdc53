"""The compiled engine: one run of built-in policies as loops over flat arrays.

The same decisions and the same times as the controller under the clock, to the nanosecond,
written a second time for numba. What it takes is in ``acceptance.py``; everything else is refused
by name. Only ``jit.py`` and ``tables.py`` import numba, and none of the loops is imported before
a run.

    layout.py        what the arrays are        jit.py      how functions are compiled
    tables.py        an array without its cost  opening.py  a run's arrays as tables
    trace_arrays.py  a trace's demands          wishes.py   what prefetch policies answer
    packing.py       a run into arrays          shelves.py, marks.py    the order of leaving
    caches.py        cache policies             lfru.py, priorities.py  whose score is lowest
    decide.py        judgement, runs, waves     transfers.py rooms, victims, copies, wishes
    serve.py         steps, one after another   machine.py  GPU, link and host
    counting.py      without a clock            running.py  from a run to its figures
    streaming.py     a long trace in pieces
"""
