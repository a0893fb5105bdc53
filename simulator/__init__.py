"""What happens, in virtual time: policies decide, a controller keeps books, an engine the clock.

A reader begins with ``terms`` (the nouns), ``messages`` (facts in, commands out) and
``policies/base`` (what a policy is asked); ``controller`` is the heart and ``runs`` puts it all
together::

    workload  what is served, and what may be known of it when      serving   requests that arrive
    policies  what decides; systems names bundles of them           control   the controller's books
    engines   how time passes: clock, simpy, compiled               models    sizes and shapes
    results   rows, reports, figures                                limits    what nobody can beat
    frontier  every cache size at once    sweeps  many runs    fitting  profiles from a log

All of this is for one GPU, whole experts and RAM that holds them; ``gpus``, ``control/splits``
and ``tiers`` are what differs otherwise, in files named like those that they specialise.
"""
