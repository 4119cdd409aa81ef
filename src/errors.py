"""The one kind of error that a user can mend."""

LONGEST = 500
"""Characters of a message; what a longer one names in its middle (columns, labels, a cell) is left out, for what is wrong stands before and the cure behind."""


class UserError(ValueError):
    """Wrong input: one line that names what was given, what is allowed and how to mend it.

    The command line prints the message alone and ends with exit status 2; library callers see a `ValueError`. Messages quote what was found in files,
    so characters that would break the line or steer a terminal are shown as escapes.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if not text.isprintable():
            text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 165]} ... {text[-160:]}"
        super().__init__(text)
