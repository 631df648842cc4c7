"""What can go wrong when the kubelet or the API server is asked; no text here has a secret."""

from __future__ import annotations

from fusewatchd.errors import KubeError


class UnreachableError(KubeError):
    """No answer: refused, timed out, or TLS did not come about."""


class AnswerError(KubeError):
    """An answer that cannot be used: a redirect, too long, not JSON."""


class UnauthorizedError(KubeError):
    """401: the token or certificate is not accepted."""


class ForbiddenError(KubeError):
    """403: accepted, but not allowed to do this."""


class NotFoundError(KubeError):
    """404: no such object, namespace or API group."""


class ConflictError(KubeError):
    """409: the object exists already, or its namespace is being deleted."""


class TooManyRequestsError(KubeError):
    """429; ``retry_after`` is in seconds, 0 where the server did not say."""

    def __init__(self, message: str, retry_after: float) -> None:
        """Keep how long the server wants to be left in peace."""
        super().__init__(message, 429)
        self.retry_after = retry_after


class RejectedError(KubeError):
    """Another 4xx: the request itself is wrong and is not to be repeated."""


class ServerError(KubeError):
    """5xx; ``retry_after`` as in ``TooManyRequestsError``."""

    def __init__(self, message: str, code: int, retry_after: float) -> None:
        """Keep how long the server wants to be left in peace."""
        super().__init__(message, code)
        self.retry_after = retry_after


class NoOwnerError(KubeError):
    """What an Event is about cannot be named: there is no such object, or we may not see it."""

    def __init__(self, message: str, missing_permission: str = "") -> None:
        """Keep what is not permitted; empty: there is no such object."""
        super().__init__(message)
        self.missing_permission = missing_permission


def code_class(code: int) -> str:
    """Return the metric label of a status: ``2xx`` and so on, ``error`` for no answer."""
    return f"{code // 100}xx" if 100 <= code < 600 else "error"


def refusal_of(code: int, message: str, rest_seconds: float) -> KubeError:
    """Return the error that a status code other than success stands for.

    ``rest_seconds`` is how long the server asked not to be asked again; 0: it did not say.
    """
    match code:
        case 401:
            return UnauthorizedError(message, code)
        case 403:
            return ForbiddenError(message, code)
        case 404:
            return NotFoundError(message, code)
        case 409:
            return ConflictError(message, code)
        case 429:
            return TooManyRequestsError(message, rest_seconds)
        case _ if code >= 500:
            return ServerError(message, code, rest_seconds)
        case _:
            return RejectedError(message, code)
