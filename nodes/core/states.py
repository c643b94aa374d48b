"""The states of a job, in the contract's spelling."""

from enum import Enum


class JobState(str, Enum):
    """Where a job is. All but ``PREPARING`` are kept in the ledger."""

    PREPARING = "preparing"  # nothing was sent, nothing is written
    SUBMITTING = "submitting"  # written and synced before the POST
    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    DOWNLOADING = "downloading"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # done, but RunComfy has the result no more
    UNKNOWN = "unknown"  # the POST may have arrived and no answer came


AT_RUNCOMFY = (JobState.IN_QUEUE, JobState.IN_PROGRESS, JobState.DOWNLOADING)
NOT_BINDING = (JobState.FAILED, JobState.CANCELLED)  # the same request may be paid for anew
ENDED = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
