"""The one way in which a job is sent and paid: encode, upload, claim, POST, write down its id.

Nothing is sent that the ledger has not taken, and nothing twice: what may have arrived is never
sent again.
"""

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from . import errors, stop
from .client import RunComfyClient
from .collect import Collector
from .draft import Draft
from .elements import VideoFile, as_urls, named_pictures
from .job import Job, Order, thread_name
from .kling import IMAGE_MAX_BYTES
from .ledger import Ledger
from .live import Live
from .media import images
from .media.fit import encode_all
from .rows import NewJob, Row
from .states import JobState
from .transport import Transport
from .uploaders.base import Uploader
from .uploads import Uploads

log = logging.getLogger("runcomfy")

SUBMIT_ATTEMPTS = 4  # of submits that surely did not arrive
RATE_LIMIT_S = 600.0  # for so long "too many calls" is waited out
MAX_PAUSE_S = 30.0
LEAST_PICTURE_BYTES = 300_000  # what a picture needs to look well
LARGER_HOSTS = (
    "Set up a host for larger files (RUNCOMFY_OBJECT_STORE_URL or RUNCOMFY_PUBLIC_ADDRESS), give "
    "the video's web address as video_url, or save it smaller."
)


def room_for_pictures(uploader: Uploader, videos: Sequence[VideoFile], pictures: int) -> int | None:
    """How many bytes all pictures of a request may have together; None for no limit.

    Raises:
        InputError: A video is too large for the host, or leaves the pictures no room.
    """
    sizes = [_size(file) for file in videos]
    left = None if uploader.max_total_bytes is None else uploader.max_total_bytes - sum(sizes)
    tight = left is not None and left < pictures * LEAST_PICTURE_BYTES
    if tight or any(size > uploader.max_video_bytes for size in sizes):
        raise errors.InputError(
            f"The element's video has {max(sizes) / 1e6:.0f} MB; {uploader.name} takes videos up "
            f"to {uploader.max_video_bytes / 1e6:.0f} MB. {LARGER_HOSTS} Nothing was charged."
        )
    return left


def check_room(uploader: Uploader, order: Order) -> None:
    """Raise InputError if the elements' videos leave no room for what else is sent."""
    videos = [one.video for one in order.elements if one.video]
    room_for_pictures(uploader, videos, _copies(order).total())


def _copies(order: Order) -> Counter[int]:
    """How often each picture goes into the request, by its Python id."""
    sent = [order.start_image, order.end_image]
    sent += [image for one in order.elements for image in (one.frontal, *one.references)]
    return Counter(id(image) for image in sent if image is not None)


def _size(file: VideoFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:
        raise _gone(file) from None


def _gone(file: VideoFile) -> errors.InputError:
    return errors.InputError(
        f"The element's video {file.path.name} was changed or removed, so nothing was sent. Change "
        "something on its Kling Element and queue again."
    )


def _unchanged(file: VideoFile) -> bytes:
    """The bytes that the request was named by: its job may have stood in line for long."""
    with suppress(OSError):
        data = file.path.read_bytes()
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return data
    raise _gone(file)


class Sender:
    """Sends jobs of one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        live: Live,
        collector: Collector,
        uploads: Uploads,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[Job, float], None],
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._collector = collector
        self._uploads = uploads
        self._clock = clock
        self._pause = pause

    def send(self, job: Job, draft: Draft) -> tuple[Row, str | None]:
        """Send a job, unless somebody was quicker.

        Returns:
            Its row and RunComfy's id of it; no id where the row is another sender's.

        Raises:
            RunComfyError: It was not sent, or (SubmitUnknown) nobody can tell.
        """
        order = draft.order
        job.notes += order.notes
        payload = self._payload(job, order)
        if job.stop_requested.is_set():
            raise errors.JobCancelled(stop.NOT_SENT)
        row, is_ours = self._claim(job, draft, payload)
        job.is_new = is_ours
        if not is_ours:
            return row, None
        return row, self._post(job, row, order.request.model_id, payload)

    def _payload(self, job: Job, order: Order) -> dict[str, Any]:
        """The JSON of the submit, with everything that was wired uploaded."""
        urls = self._upload(job, order)
        start, end = order.start_image, order.end_image
        return order.request.payload(
            order.start_image_url if start is None else urls[id(start)],
            end_image_url=None if end is None else urls[id(end)],
            elements=as_urls(order.elements, lambda one: urls[id(one)], lambda one: urls[id(one)]),
        )

    def _upload(self, job: Job, order: Order) -> dict[int, str]:
        """The addresses of all pictures and videos of an order, by their Python id."""
        uploader = job.connection.uploader
        wired = [(order.start_image, "start_image"), (order.end_image, "end_image")]
        wired += named_pictures(order.elements)
        pictures = {
            id(image): images.check(image, name) for image, name in wired if image is not None
        }
        videos = {id(one.video): one.video for one in order.elements if one.video}
        copies = _copies(order)
        left = room_for_pictures(uploader, list(videos.values()), copies.total())
        encoded = encode_all(
            list(pictures.values()),
            max_bytes=min(uploader.max_bytes, IMAGE_MAX_BYTES),
            max_total_bytes=left,
            copies=[copies[key] for key in pictures],
        )
        job.update(note=uploader.notice())
        urls = {}
        for key, one in zip(pictures, encoded, strict=True):
            job.notes += one.notes
            urls[key] = self._put(job, one.data, one.content_type)
        for key, file in videos.items():
            urls[key] = self._put(job, _unchanged(file), "video/mp4")
        return urls

    def _put(self, job: Job, data: bytes, content_type: str) -> str:
        hosted = self._uploads.put(job.connection.uploader, data, content_type, user=job)
        job.notes += [note for note in hosted.notes if note not in job.notes]
        job.update(note="\n".join(hosted.notes))
        return hosted.url

    def _claim(self, job: Job, draft: Draft, payload: Mapping[str, Any]) -> tuple[Row, bool]:
        transport, order = job.connection.transport, draft.order
        new = NewJob(
            identity=draft.identity.full,
            near_identity=draft.identity.near,
            origin=transport.origin,
            account=transport.account,
            model_id=order.request.model_id,
            payload=draft.identity.payload,
            price_usd=job.price_usd,
            prefix=order.prefix,
            duration_s=order.request.duration_s,
            prompt=order.prompt,
            workflow=order.workflow,
        )
        limit_s = Transport.post_limit_s(payload)
        budget_usd = job.connection.budget_usd
        row, is_ours = self._ledger.claim(new, post_limit_s=limit_s, budget_usd=budget_usd)
        if is_ours:
            self._live.enter(row.id, job)
        return row, is_ours

    def _post(self, job: Job, row: Row, model_id: str, payload: Mapping[str, Any]) -> str:
        """Send the claimed job; what comes of it is written when this returns or raises."""
        client = RunComfyClient(job.connection.transport, clock=self._clock)
        job.update(state=JobState.SUBMITTING)
        try:
            request_id = self._submit(job, row, client, model_id, payload)
        except errors.SubmitUnknown as error:
            # the row without its request id would be found as unknown all the same
            values = {"request_id": error.request_id} if error.request_id else {}
            self._collector.record(job, row, JobState.UNKNOWN, error=str(error), **values)
            raise
        except errors.JobCancelled:
            self._collector.record(job, row, JobState.CANCELLED)
            raise
        except (errors.NeverLeft, errors.ApiError, errors.LedgerError) as error:
            self._collector.record(job, row, JobState.FAILED, error=str(error))
            raise
        job.update(request_id=request_id)
        threading.current_thread().name = thread_name(request_id)
        self._collector.record(job, row, JobState.IN_QUEUE, request_id=request_id)
        log.info("job sent: request %s", request_id)
        return request_id

    def _submit(
        self,
        job: Job,
        row: Row,
        client: RunComfyClient,
        model_id: str,
        payload: Mapping[str, Any],
    ) -> str:
        backoff, began, attempt = job.connection.backoff, self._clock(), 0
        pause_s = backoff.turn_s()
        while True:
            while pause_s > 0 and not job.stop_requested.is_set():
                # meanwhile another job may be told to slow down
                self._hold(job, row, payload, pause_s)
                pause_s = backoff.turn_s() if backoff.left_s() else 0.0
            attempt += 1
            if job.stop_requested.is_set():
                raise errors.JobCancelled(stop.NOT_SENT)
            try:
                return client.submit(model_id, payload, give_up=job.stop_requested.is_set)
            except errors.RateLimitError as error:
                if self._clock() - began > RATE_LIMIT_S:
                    raise
                backoff.hold(max(error.retry_after_s or 0.0, min(2.0**attempt, MAX_PAUSE_S)))
                pause_s = backoff.turn_s()
                job.update(note=str(error))
            except errors.NeverLeft as error:
                if attempt >= SUBMIT_ATTEMPTS:
                    raise
                pause_s = max(2.0**attempt, backoff.turn_s())
                job.update(note=str(error))

    def _hold(self, job: Job, row: Row, payload: Mapping[str, Any], seconds: float) -> None:
        """Wait with a claimed row, which must not be taken for one whose POST is over."""
        self._ledger.renew(row.id, post_limit_s=seconds + Transport.post_limit_s(payload))
        self._pause(job, seconds)
