"""Every error this pack raises on purpose.

    RunComfyError                 a sentence a user can act on
      ConfigError                 no token, or a bad setting
      LedgerError                 the ledger cannot be read or written: no POST without it
        TransitionRefused         a state that a job cannot come to from where it is
      InputError (ValueError)     breaks a limit; raised before upload and charge
      BudgetExceeded              would pass the budget of the day; raised before it is sent
      UploadError                 a host did not take a picture; raised before any charge
      MediaError                  a picture or clip that cannot be read or saved
        ForeignAddress            a clip's address that RunComfy's results do not come from
      NetworkError                no usable answer; asking again is safe
        SlowDown                  too many questions: all jobs hold back
        NeverLeft                 a submit whose last byte was never handed over
      SubmitUnknown               the submit may have arrived: paid or not, nobody can tell
      ApiError                    RunComfy answered, and the answer is no
        AuthError                 token missing, wrong, or of another account
        PaymentError              no balance
        NotFoundError             RunComfy does not know this request or model (any more)
        RateLimitError            too many calls
      JobFailed                   the job ran at RunComfy and failed
      JobCancelled                the job was cancelled before it ran
      ResultExpired               the job was done, but RunComfy has its clip no more
      JobTimeout (TimeoutError)   still running when we stopped waiting; can be collected

``request_id`` is RunComfy's id of the job wherever one is known, and part of the text.
"""


class RunComfyError(Exception):
    """Base of all. ``str(error)`` is one or two sentences for the user."""

    def __init_subclass__(cls) -> None:
        # ComfyUI shows the type with its module, which for a custom node is a path on the disk
        cls.__module__ = "runcomfy"

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id

    def __str__(self) -> str:
        message = super().__str__()
        if self.request_id and self.request_id not in message:
            return f"{message} (request {self.request_id})"
        return message


RunComfyError.__module__ = "runcomfy"  # it is raised itself, too


class ConfigError(RunComfyError):
    """No token, or a setting with a value that cannot be used."""


class LedgerError(RunComfyError):
    """The ledger of jobs cannot be read or written, or is damaged."""


class TransitionRefused(LedgerError):
    """A job cannot come to this state from the one it is in."""


class InputError(RunComfyError, ValueError):
    """A value breaks a limit of the model or of the pack. Nothing was uploaded or charged."""


class BudgetExceeded(RunComfyError):
    """A job or run would pass what may be spent today. Nothing was sent for it."""


class UploadError(RunComfyError):
    """A host did not take a picture, or cannot hand it on. Nothing was charged."""


class MediaError(RunComfyError):
    """A picture or clip cannot be read, or is not what was asked for."""


class ForeignAddress(MediaError):
    """A clip's address is not one that RunComfy's results come from."""


class NetworkError(RunComfyError):
    """No usable answer (time-out, cut line, gateway page, 5xx, 429). Asking again is safe.

    ``retry_after_s`` is the pause the server asked for, in seconds, if it named one.
    """

    def __init__(
        self, message: str, *, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_after_s = retry_after_s


class SlowDown(NetworkError):
    """RunComfy answered a question with "too many calls"."""


class NeverLeft(NetworkError):
    """The last byte of a submit was never handed to the socket, so it cannot have started a job."""


class SubmitUnknown(RunComfyError):
    """The whole submit may have reached RunComfy, but no clear answer came back.

    It may be running and may be charged. It must never be sent again by itself.
    """


class ApiError(RunComfyError):
    """RunComfy answered with a refusal. ``status_code`` is HTTP's, ``error_code`` RunComfy's.

    ``retry_after_s`` is the pause the server asked for, in seconds, if it named one.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        error_code: int | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status_code = status_code
        self.error_code = error_code
        self.retry_after_s = retry_after_s


class AuthError(ApiError):
    """The token is missing, wrong, or belongs to another account."""


class PaymentError(ApiError):
    """The account has not enough balance."""


class NotFoundError(ApiError):
    """RunComfy does not know this request or model, or knows it no more."""


class RateLimitError(ApiError):
    """Too many calls in a short time."""


class JobFailed(RunComfyError):
    """The job ran at RunComfy and failed, or ended without a clip."""


class JobCancelled(RunComfyError):
    """The job was cancelled while it was still queued; queued jobs are not charged."""


class ResultExpired(RunComfyError):
    """The job was done, but RunComfy does not have its clip any more."""


class JobTimeout(RunComfyError, TimeoutError):
    """The job had not ended when the waiting time was up. It stays collectable by its id."""
