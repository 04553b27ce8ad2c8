"""Errors for users. The message is one line: where, what was found, what to do; the command line prints it and exits with 1."""


class OmniError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(OmniError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(OmniError):
    """A file, manifest row, picture or clip is missing, unreadable or does not fit."""


class CheckpointError(OmniError):
    """A checkpoint is missing, truncated, or of another shape than the model."""


class NonFiniteError(OmniError):
    """Training produced non-finite or exploding updates too many times in a row."""
