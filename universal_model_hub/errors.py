"""The errors this package raises: one base class, a few children, an exit code each.

Every message says three things: what was expected, what came, what to do.
"""


class UniversalModelError(Exception):
    """Base of all errors of this package."""

    exit_code = 2


class WeightsError(UniversalModelError, ValueError):
    """A weight file, or the tensors in it, do not fit what was asked for."""


class ConfigError(UniversalModelError, ValueError):
    """A name, an option or a configuration file cannot be used as given."""


class VolumeError(UniversalModelError, ValueError):
    """A scan cannot be read or written as a 3D volume."""


class GeometryError(VolumeError):
    """A scan's affine or grid is unusable: not finite, not invertible, not matching."""


class TooLargeError(VolumeError):
    """A scan, or the work on it, would not fit the stated memory budget."""


class PublishError(UniversalModelError, ValueError):
    """A model folder cannot be published as it is."""


class DownloadError(UniversalModelError, OSError):
    """Files could not be fetched from the Hub."""

    exit_code = 3


class NotFoundError(DownloadError):
    """The repository, revision or file does not exist on the Hub."""


class AccessError(DownloadError):
    """The Hub refused: no token, a bad token, or a gated repository."""


class OfflineError(DownloadError):
    """The Hub cannot be reached, or was not to be asked, and the cache lacks the file."""


class IntegrityError(UniversalModelError, OSError):
    """A file's content differs from what was published."""

    exit_code = 4


class CheckpointError(UniversalModelError, OSError):
    """A training checkpoint is damaged, incomplete, or belongs to another configuration."""

    exit_code = 4
