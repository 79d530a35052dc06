"""The one way a program ends when its user can mend the cause."""


class UserError(Exception):
    """A mistake or a lack that the user can mend.

    The message is one line that says what was wrong and what to do. Programs print it
    on standard error and leave with exit status 2 (see :func:`experiments.config.experiment.run`).
    """
