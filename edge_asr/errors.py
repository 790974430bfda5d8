"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend; printed as one line, without a traceback.

    The message names the field, the value and the remedy.
    """
