"""From a job that RunComfy has to the clip under its name: watch, download, verify, place.

Each step is written to the ledger before the next one begins, so that a process that dies anywhere
in here can go on from the row. Nothing in here can cost money.
"""

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from . import errors
from .client import NEW_REQUEST_GRACE_S, JobStatus, RunComfyClient, State
from .download import download
from .job import Clip, Job
from .ledger import Ledger, Row
from .media import video
from .states import JobState

log = logging.getLogger("runcomfy")

DURATION_TOLERANCE_S = 0.5
DEAD_LINK_PAUSES_S = (2.0, 10.0)
RENAME_ATTEMPTS = 20  # on Windows a virus scanner or a preview may hold a new file for a moment
NAME_ATTEMPTS = 10_000
NAMED_S, NAMED_LOOKS = 0.2, 25  # the file follows its name at once, or its process has died
LEFTOVER_S = 3600.0  # a download that nobody has written to for so long is nobody's
_GONE = (404, 410)
_STATES = {State.IN_PROGRESS: JobState.IN_PROGRESS, State.COMPLETED: JobState.IN_PROGRESS}


class Places(Protocol):
    """Where clips go, by ComfyUI's prefix rules."""

    def folder(self, prefix: str) -> Path:
        """The folder of the clips, which exists; raises InputError if it is out of bounds."""
        ...

    def candidate(self, prefix: str, width: int, height: int) -> Path:
        """The next free name for a clip of this size in pixels. Nothing is created."""
        ...


class Collector:
    """Collects clips for rows of one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        places: Places,
        *,
        clock: Callable[[], float],
        pause: Callable[[Job, float], None],
    ) -> None:
        self._ledger = ledger
        self._places = places
        self._clock = clock
        self._pause = pause

    def record(self, job: Job, row: Row, state: JobState, **values: Any) -> None:
        """Write a step of a job that was already sent.

        A ledger that fails here must not lose the clip: what could not be written is kept and
        written with the next step.
        """
        job.update(state=state)
        job.unwritten.append((state, values))
        try:
            self.flush(job, row.id)
        except errors.LedgerError as error:
            request_id = job.progress.request_id
            log.error("request %s goes on, but is not in the ledger: %s", request_id, error)

    def collect(self, job: Job, row: Row, request_id: str, *, is_new: bool) -> Clip:
        """Wait for the job's clip and save it.

        Args:
            job: Shows the progress.
            row: The job in the ledger.
            request_id: RunComfy's id of it.
            is_new: Whether it was sent just now, so that RunComfy may not know it yet.

        Raises:
            JobFailed, JobCancelled, ResultExpired: There will be no clip.
            RunComfyError: It did not work now; the job stays collectable.
        """
        job.update(request_id=request_id)
        client = RunComfyClient(job.connection.transport, clock=self._clock)
        status = self._watch(job, row, client, request_id, is_new)
        return self._save(job, row, client, status)

    def from_disk(self, row: Row) -> Clip | None:
        """The clip that the row names, if it is still there as it was saved, and plays.

        The row gets the name before the file does, and a process may die in between: the hash
        tells this clip from one that took the name instead.
        """
        if row.path is None or row.request_id is None:
            return None
        path = Path(row.path)
        try:
            if _sha256(path) != row.file_sha256:
                return None
            info = video.inspect(path)
        except (errors.MediaError, OSError):
            return None
        return Clip(row.id, path, row.request_id, info, row.cost_usd, reused=True)

    def _latest(self, row: Row) -> Row:
        try:
            return self._ledger.get(row.id)
        except errors.LedgerError as error:  # the clip at hand is worth more than the question
            log.error("%s", error)
            return row

    def flush(self, job: Job, row_id: int) -> None:
        """Write what the ledger could not take before; raises LedgerError if it still cannot."""
        while job.unwritten:
            pending, its_values = job.unwritten[0]
            with suppress(errors.TransitionRefused):  # another process was quicker
                self._ledger.advance(row_id, pending, **its_values)
            job.unwritten.pop(0)

    def _watch(
        self, job: Job, row: Row, client: RunComfyClient, request_id: str, is_new: bool
    ) -> JobStatus:
        status = JobStatus(request_id, State.UNKNOWN)
        try:
            for status in client.watch(
                request_id,
                lambda seconds: self._pause(job, seconds),
                poll_s=job.connection.poll_s,
                timeout_s=job.connection.timeout_s,
                grace_s=NEW_REQUEST_GRACE_S if is_new else 0.0,
            ):
                state = _STATES.get(status.state)
                if state and state != job.progress.state:
                    self.record(job, row, state)
                job.update(queue_position=status.queue_position, note=status.note)
        except errors.NotFoundError:
            raise self._expired(job, row, request_id) from None
        if status.state == State.FAILED:
            said = status.error or "RunComfy gives no reason"
            self.record(job, row, JobState.FAILED, error=said, cost_usd=status.cost_usd)
            raise errors.JobFailed(f"Kling could not make the clip: {said}", request_id=request_id)
        if status.state == State.CANCELLED:
            self.record(job, row, JobState.CANCELLED)
            raise errors.JobCancelled(
                "The job was cancelled while queued; nothing is charged.", request_id=request_id
            )
        return status

    def _save(self, job: Job, row: Row, client: RunComfyClient, status: JobStatus) -> Clip:
        if (meanwhile := self.from_disk(self._latest(row))) is not None:
            return meanwhile  # another process was quicker
        self.record(job, row, JobState.DOWNLOADING)
        job.update(queue_position=None, note="")
        part = self._part(row, status.request_id)
        try:
            info = self._fetch(job, row, client, status, part)
            latest = self._latest(row)
            if (meanwhile := self.from_disk(latest)) is not None:
                return meanwhile
            video.add_metadata(part, prompt=row.prompt, workflow=row.workflow)
            path = self._place(job, replace(row, path=latest.path), part, info)
        finally:
            with suppress(OSError):  # held open by a scanner: it is removed with the leftovers
                part.unlink(missing_ok=True)
        self.record(job, row, JobState.COMPLETED, path=str(path), cost_usd=status.cost_usd)
        cost_usd = self._cost(client, status)
        if cost_usd != status.cost_usd:
            self.record(job, row, JobState.COMPLETED, cost_usd=cost_usd)
        notes = []
        if abs(info.duration_s - row.duration_s) > DURATION_TOLERANCE_S:
            notes.append(
                f"The clip lasts {info.duration_s:.1f} s; {row.duration_s:g} s were asked for."
            )
        return Clip(row.id, path, status.request_id, info, cost_usd, notes=tuple(notes))

    def _fetch(
        self, job: Job, row: Row, client: RunComfyClient, status: JobStatus, part: Path
    ) -> video.ClipInfo:
        """Download and verify; a link that is dead or brings no clip is asked for again by id."""
        for pause_s in (*DEAD_LINK_PAUSES_S, None):
            for url in status.video_urls:
                try:
                    return self._download(job, url, part)
                except (errors.ApiError, errors.MediaError) as error:
                    failed = error
            if pause_s is None:
                break
            log.warning("asking for the clip's address again: %s", failed)
            self._pause(job, pause_s)
            again = client.result(status.request_id)
            status = again if again.video_urls else status
        if isinstance(failed, errors.ApiError) and failed.status_code in _GONE:
            raise self._expired(job, row, status.request_id)
        raise failed

    def _download(self, job: Job, url: str, part: Path) -> video.ClipInfo:
        download(
            job.connection.transport,
            url,
            part,
            wait=lambda seconds: self._pause(job, seconds),
            on_bytes=lambda done: job.update(bytes_done=done),
        )
        return video.inspect(part)

    def _place(self, job: Job, row: Row, part: Path, info: video.ClipInfo) -> Path:
        """Give the clip its final name, which no parallel job can get too.

        The name is written down first: whoever finds the row later finds the file. Another process
        that collects the same job may have named it since ``row``: then its file is the clip.
        """
        file_sha256 = _sha256(part)
        named = row.path
        for extra in range(NAME_ATTEMPTS):
            path = _counted_up(self._places.candidate(row.prefix, info.width, info.height), extra)
            other = self._name(job, row, path, file_sha256, instead_of=named)
            if other is not None:
                if self._appears(job, other):
                    return Path(str(other.path))
                named = other.path
                continue
            named = str(path)
            try:
                _rename_to_new(part, path)
            except FileExistsError:
                continue
            except OSError as error:
                raise errors.MediaError(
                    f"The clip cannot be saved as {path}: {error.strerror or error}. It stays at "
                    "RunComfy: choose another filename_prefix, or mend that, and queue again; "
                    "nothing is charged for it."
                ) from None
            return path
        raise errors.MediaError(f"There is no free name like {path}. Choose another prefix.")

    def _name(
        self, job: Job, row: Row, path: Path, file_sha256: str, *, instead_of: str | None
    ) -> Row | None:
        """Write the clip's name down; returns the row if another process has named the clip."""
        try:
            self.flush(job, row.id)
            named, is_ours = self._ledger.name_clip(
                row.id, str(path), file_sha256, instead_of=instead_of
            )
        except errors.LedgerError as error:
            log.error("the clip's name is not in the ledger yet: %s", error)
            values = {"path": str(path), "file_sha256": file_sha256}
            job.unwritten.append((JobState.DOWNLOADING, values))
            return None
        return None if is_ours else named

    def _appears(self, job: Job, row: Row) -> bool:
        """Whether the file that another process has named comes to be there."""
        for _ in range(NAMED_LOOKS):
            if self.from_disk(row) is not None:
                return True
            self._pause(job, NAMED_S)
        return False

    def _expired(self, job: Job, row: Row, request_id: str) -> errors.ResultExpired:
        self.record(job, row, JobState.EXPIRED)
        return expired(request_id)

    def _cost(self, client: RunComfyClient, status: JobStatus) -> float | None:
        """The real cost, which RunComfy may know only some time after the end."""
        if status.cost_usd is not None:
            return status.cost_usd
        with suppress(errors.NetworkError, errors.ApiError):
            return client.result(status.request_id).cost_usd
        return None

    def _part(self, row: Row, request_id: str) -> Path:
        """A name of our own: another process may be collecting the same job."""
        name = f".runcomfy-{re.sub(r'[^A-Za-z0-9_-]', '_', request_id)[:64]}"
        folder = self._places.folder(row.prefix)
        for leftover in folder.glob(f"{name}.*.part*"):  # of a process that died
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_S:
                    leftover.unlink(missing_ok=True)
        return folder / f"{name}.{secrets.token_hex(4)}.part"


def expired(request_id: str | None) -> errors.ResultExpired:
    """What to say of a paid clip that is nowhere any more."""
    return errors.ResultExpired(
        "This clip was made and paid before, but its file is gone and RunComfy does not have it "
        "any more. To make and pay for it anew, change the seed.",
        request_id=request_id,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _counted_up(path: Path, extra: int) -> Path:
    """The name ``extra`` numbers on: ComfyUI's count can miss files that are there."""
    found = re.fullmatch(r"(.*_)(\d+)(_\.mp4)", path.name)
    if not extra or found is None:
        return path
    return path.with_name(f"{found[1]}{int(found[2]) + extra:05}{found[3]}")


def _rename_to_new(part: Path, path: Path) -> None:
    """Rename without ever replacing a file; raises FileExistsError if there is one."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links: take the name with an empty file, then replace it
        path.open("xb").close()
        try:
            _replace(part, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    if os.name == "posix":  # the name itself survives a power cut only once its folder is synced
        with suppress(OSError):  # some network folders cannot do that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _replace(part: Path, path: Path) -> None:
    for _ in range(RENAME_ATTEMPTS - 1):
        try:
            part.replace(path)
            return
        except PermissionError:
            time.sleep(0.1)
    part.replace(path)
