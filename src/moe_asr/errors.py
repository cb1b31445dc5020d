"""The one exception that means "the user's input is wrong" (exit code 2, one sentence, no traceback)."""


class InputError(Exception):
    """What the user gave cannot be used; the message names the thing and the remedy in one sentence."""
