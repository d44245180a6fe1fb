"""Errors that end a command with one line, and the exit codes that schedulers read."""

EXIT_USER_ERROR = 2
# EX_UNAVAILABLE of sysexits.h: a server or the network failed; a retry may help.
EXIT_TRANSIENT = 69
# EX_TEMPFAIL of sysexits.h: the work was interrupted and saved; the same command resumes it.
EXIT_RESUMABLE = 75


class UserError(Exception):
    """Something the user can fix; its text is one line that names the file, row or field and the fix."""


class Unavailable(UserError):
    """A server or the network failed; the same command may work later."""


class Interrupted(Exception):
    """A signal stopped the work; what was done is saved, and the same command resumes it."""
