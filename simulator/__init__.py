"""What happens, in virtual time: policies decide, a controller keeps books, an engine the clock.

A reader begins with ``terms`` (the nouns), ``messages`` (facts in, commands out) and
``policies/base`` (what a policy is asked); ``controller`` is the heart and ``runs`` puts it all
together. All of this is for one GPU, whole experts and RAM that holds them; ``gpus``, ``splits``
and ``tiers`` are what differs otherwise, in files named like those that they specialise.
"""
