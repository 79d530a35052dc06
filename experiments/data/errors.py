"""Errors of data sets that the user can fix."""

from experiments import UserError


class DatasetUnavailable(UserError):
    """The data set is neither on this machine nor downloadable; "auto" then takes the digits."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
