"""The one error a person can mend.

Everything that bad input can cause (a column that is not there, a truncated file, a flag that contradicts a saved run) is
raised as :class:`InputError`. Its text is what the command line prints: it names the column, row, file or flag, and the remedy.
"""


class InputError(ValueError):
    """Bad input, with a message for the person who gave it.

    The command line prints the message after ``error:`` and exits with code 2; a library user catches it as ``ValueError``.
    """
