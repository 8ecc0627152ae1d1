"""The one error a user can cause."""

from __future__ import annotations


class UserError(Exception):
    """Something in the data, the recipe or the folder is wrong, and the user can mend it.

    The message is the whole story: which file, line or field, which value, and the cure.
    The command line prints it without a traceback and exits with code 2.
    """
