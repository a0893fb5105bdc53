"""The compiled engine: one run of built-in policies as loops over flat arrays.

The same decisions and the same times as the controller under `engine_clock`, to the nanosecond,
written a second time for numba. What it takes is in ``acceptance.py``; everything else is refused
by name. No module but ``jit.py`` imports numba, and none of the loops is imported before a run.

    layout.py        what the arrays are        jit.py      how functions are compiled
    trace_arrays.py  a trace's demands          wishes.py   what prefetch policies answer
    packing.py       a run into arrays          shelves.py  the order in which experts leave
    caches.py        cache policies             transfers.py rooms, victims, copies, wishes
    decide.py        judgement, runs, waves     machine.py  GPU, link and host
    serve.py         steps, one after another   running.py  from a run to its figures
    counting.py      without a clock            streaming.py a long trace in pieces
"""
