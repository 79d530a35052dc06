"""The exception for everything that the user of a command can fix."""


class UserError(Exception):
    """A cause of failure that the user can fix.

    The message is one line that says what was wrong and what to do. Commands print it on
    standard error and end with exit status 2, see :func:`experiments.config.flags.run`.
    """
