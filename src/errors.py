"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Wrong input: one line that names what was given, what is allowed and how to mend it.

    The command line prints the message alone and ends with exit status 2; library callers see a `ValueError`.
    """
