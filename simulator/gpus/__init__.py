"""Several GPUs of one host: who holds which expert, and what passes between them.

A run on one GPU imports this package and calls nothing of it. Where a run has a plan, `open_books`
and `Host` take these in place of what they take for one GPU, under the same file names::

    plan.py          homes of experts, routers of layers
    rooms.py         the VRAM of each GPU
    placement.py     which GPU is an expert's home
    residency.py     the pools of each GPU             control/
    transfers.py     a queue and a window for each     control/
    layer_event.py   each expert runs on its home      control/
    hands.py         streams, links, the exchange      engines/
    machine.py       streams that wait for another's   engines/
    shared_links.py  links in fair shares
    results.py       what a row and a report say

The column to the right names the package of `moesim.simulator` whose file of that name is
specialised. Policies know none
of this: they are asked about a layer and its experts, as on one GPU.
"""
