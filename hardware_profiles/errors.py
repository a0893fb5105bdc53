"""What is wrong with somebody's profile, and what would do instead."""


class ProfileError(ValueError):
    """A hardware profile, runtime, model shape or written quantity that cannot be used.

    The message has one line per fault; each names the file and the key where there is one, the
    value, and the way out.
    """
