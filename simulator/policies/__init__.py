"""Who decides: cache, prefetch and schedule policies, one file each; ``base`` is the contract."""
