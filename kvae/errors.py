"""The one exception that means "the user can mend this"."""


class InputError(ValueError):
    """Something outside the program is wrong: a field, a file, a folder, an array.

    Its message is one line that names what was found, where, and what would do. `kvae.main` prints it without a
    traceback and leaves with status 2; any other exception is a defect of kvae and keeps its traceback.
    """
