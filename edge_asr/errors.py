"""The one exception a user is meant to see, and what a command then exits with."""

# As argparse does for a wrong option.
USAGE_ERROR = 2


class UserError(Exception):
    """A mistake that the user can mend; printed as one line, without a traceback.

    The message names the field, the value and the remedy.
    """
