"""The exceptions of safe_rl: each says what was expected, what came and what to do next."""


class SafeRLError(Exception):
    """Base of every error that safe_rl raises on purpose."""


class ModelError(SafeRLError):
    """A robot, set, policy or task was defined with values that make no sense."""


class ProgramError(SafeRLError):
    """A traced program is malformed, or was called with arrays of the wrong shape."""


class KernelError(SafeRLError):
    """The C kernel could not be built, loaded, or did not agree with the program."""


class BundleError(SafeRLError):
    """A bundle is missing, incomplete, altered, or made for another robot."""


class CertificateError(BundleError):
    """A bundle does not match the certificate that it carries."""


class PlantError(SafeRLError):
    """A plant (simulation or vehicle) was asked for something that it cannot do."""
