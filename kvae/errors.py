"""The one exception that means "the user can mend this"."""

import contextlib
import errno
import os

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class InputError(ValueError):
    """Something outside the program is wrong: a field, a file, a folder, an array.

    Its message is one line that names what was found, where, and what would do. `kvae.main` prints it without a
    traceback and leaves with status 2; any other exception is a defect of kvae and keeps its traceback.
    """


@contextlib.contextmanager
def errors_of_writing(folder):
    """Turns what a full, read-only or failing disk raises, in whichever library met it, into one line about `folder`.

    Files are written under temporary names, so that nothing which stood there before is touched.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise InputError(
            f"{folder} cannot be written: {reason}; what was there is kept, and the same command goes on once it can be"
        ) from error


def _disk_error(error: BaseException | None) -> str | None:
    """What the disk said, wherever it stands in a chain of exceptions; None where it said nothing."""
    if error is None or isinstance(error, InputError):
        return None
    for number in DISK_ERRORS:
        # Libraries in C++ wrap it into errors of their own, and keep the text.
        if getattr(error, "errno", None) == number or f"{os.strerror(number)}" in str(error):
            return os.strerror(number)
    return _disk_error(error.__cause__ or error.__context__)
