"""The one exception whose message is written for the person who runs the program."""


class UserError(Exception):
    """Something outside the program is wrong: input, configuration, a folder, a checkpoint.

    The message says in one paragraph what was found, where, and what to do. `main` prints it
    without a stack of frames and exits with status 1.
    """
