"""The one exception that a user's mistake raises."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake that the user can mend: what was wrong, where, what to do, in one line.

    The command line prints it without a traceback and exits with code 2.
    """
