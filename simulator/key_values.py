"""Reads ``key=value,key=value``, as policies, arrivals, promises and columns are said."""

from moesim.simulator.errors import InputError

__all__ = ["key_values"]


def key_values(text: str, where: str, *, form: str | None = None) -> dict[str, str]:
    """Return the values by key; whether a key is known is the caller's to say.

    Args:
        text: What was said; an empty one says nothing.
        where: What said it, for messages.
        form: What would do, if ``KEY=VALUE`` does not tell it.

    Raises:
        InputError: A key has no value, or is given twice.

    >>> key_values("rate=2,requests=9", "--arrivals")
    {'rate': '2', 'requests': '9'}
    """
    found: dict[str, str] = {}
    for item in text.split(",") if text else ():
        key, _, value = (piece.strip() for piece in item.partition("="))
        if not value:
            raise InputError(
                f"{where}: expected {form}"
                if form
                else f"{where}: option {key} has no value; write {key}=VALUE"
            )
        if key in found:
            raise InputError(f"{where}: option {key} is given twice; leave one out")
        found[key] = value
    return found
