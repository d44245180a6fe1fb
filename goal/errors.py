"""The errors a user can mend, and the exit codes that schedulers read."""

EXIT_USER_ERROR = 2
# EX_UNAVAILABLE of sysexits.h: a server or the network failed; trying again later may help.
EXIT_TRANSIENT = 69
# EX_TEMPFAIL of sysexits.h: the work was interrupted, was saved, and the same command goes on from there.
EXIT_RESUMABLE = 75


class UserError(Exception):
    """Something the user can mend; its text is one line that names the file, row or field and the mend."""


class Unavailable(UserError):
    """A server or the network failed; the same command may work later."""


class Interrupted(Exception):
    """A signal asked the work to stop; what was done is saved, and the same command resumes it."""
