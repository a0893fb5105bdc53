"""Tiers of memory below VRAM: another GPU's VRAM, RAM that cannot hold all experts, and NVMe.

With one tier, RAM that holds everything, a run is what it is without this package: `plan_tiers`
answers None, and `open_books` takes the plain `Transfers` and `Outbox`. Else it takes those of this
package, whose every copy into VRAM asks where the expert lies::

    plan.py       what the user said, and what follows from it
    shelf.py      one tier, kept by a cache policy
    hierarchy.py  all of them: from which a copy comes, to which a victim goes
    transfers.py  copies into VRAM; specialises `transfers.py` of `moesim.simulator`
    results.py    what a row and a report say
"""
