"""The exceptions a user is meant to see, and what another says in a line."""


class UserError(Exception):
    """A mistake that the user can mend; printed as one line, without a traceback.

    The message names the field, the value and the remedy.
    """


class FailedRuns(Exception):
    """Runs of a sweep that failed, told in one line; each has been told before."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; of a heading, what stands under it."""
    lines = str(error).strip().splitlines() or [repr(error)]
    heading = lines[0].endswith(":") and len(lines) > 1
    return lines[heading].strip()
