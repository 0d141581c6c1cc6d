"""Names that users type and that several packages share, counted nouns, quoted values; needs no library."""

from __future__ import annotations

from collections.abc import Iterable

PARTS = ("embedding", "attention", "head", "adapter", "tasks")
"""Parts of a classifier that can be trained alone; all other weights belong to the trunk."""
AUXILIARY_TASKS = ("next_category", "next_amount", "next_time", "next_fields", "masked_fields")
"""Self-supervised tasks that can be trained together with the classifier.

* ``next_category``: the first categorical column of the entity's next transaction.
* ``next_amount``, ``next_time``: the bucket of its amount, and of the time until it.
* ``next_fields``: the bin or code of each of its fields.
* ``masked_fields``: the bin or code of fields of this transaction that were hidden.
"""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, which is in the plural unless the number is 1.

    Args:
        number: How many.
        noun: The noun in the singular.
        plural: The noun in the plural; None: the singular with an s.

    >>> counted(1, "fraud"), counted(2500, "row"), counted(0, "class", "classes")
    ('1 fraud', '2,500 rows', '0 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Iterable[str], most: int = 30, longest: int = 40) -> str:
    """The first names of columns, for a message; a long name is cut.

    >>> listed(["amount", "mcc", "country"], most=2), listed(["x" * 99])
    ('amount, mcc, ...', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...')
    """
    every = list(names)
    shown = [name if len(name) <= longest else f"{name[:longest]}..." for name in every[:most]]
    return ", ".join(shown) + (", ..." if len(every) > most else "")


def quoted(value: object, most: int = 60) -> str:
    """A value of a table in quotes, for a message; a long one is cut.

    >>> quoted("yes"), quoted(1.5), quoted("a" * 99, most=5)
    ("'yes'", '1.5', "'aaaaa...'")
    """
    return repr(value[:most] + "..." if isinstance(value, str) and len(value) > most else value)
