"""The exceptions that the command line answers with one sentence and no traceback."""


class InputError(Exception):
    """What the user gave cannot be used (exit code 2); the message names the thing and the remedy in one sentence."""


class JobError(Exception):
    """A sound job failed as it ran (exit code 1); the message says where, and what may help."""
