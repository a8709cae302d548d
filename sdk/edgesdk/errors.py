"""What can go wrong on the host. Each error is a sentence for a person, with what to try as its hint."""


class EdgeSDKError(Exception):
    """Base of everything that edgesdk raises on purpose. ``hint`` says what to try."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ProjectError(EdgeSDKError):
    """`edgesdk.toml`, or the folder that it should be in."""


class ProfileError(EdgeSDKError):
    """A profile that does not exist or says something that no profile can say."""


class ModelError(EdgeSDKError):
    """A model that cannot be read, or in which something stands in the way."""


class SampleError(EdgeSDKError):
    """Calibration or evaluation samples that do not fit the model."""


class EvaluationError(EdgeSDKError):
    """The user's evaluation function failed or returned no score."""


class BudgetMissed(EdgeSDKError):
    """Nothing that was tried keeps what the user will not give up."""


class ConstraintViolated(EdgeSDKError):
    """The model cannot be brought to obey its profile."""


class ConversionError(EdgeSDKError):
    """A source model that cannot be converted, or whose conversion answers otherwise."""


class FleetError(EdgeSDKError):
    """A fleet's file, or a rollout that cannot be planned."""


class SigningError(EdgeSDKError):
    """A bundle that cannot be signed, or whose signature is none."""


class ResultError(EdgeSDKError):
    """The file of a result that cannot be read or written, or is something else."""


class ConnectionFailed(EdgeSDKError):
    """No connection to the device: unreachable, unknown host key, not let in.

    ``final``: trying again cannot help, so that a link that comes and goes is told from a door that is shut.
    """

    def __init__(self, message: str, hint: str = "", *, final: bool = False) -> None:
        super().__init__(message, hint)
        self.final = final


class DeviceError(EdgeSDKError):
    """The device was reached, and something there prevents the work."""


class Refused(EdgeSDKError):
    """The device cannot run this bundle, found out before the first byte."""


class RolledBack(DeviceError):
    """The device switched to the bundle, saw that it answers wrongly, and went back to what ran before."""


class OutcomeUnknown(ConnectionFailed):
    """The connection was lost for good while the device was at work; what it did is not known from here."""
