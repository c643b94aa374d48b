"""The HTTP face of the stand-in: RunComfy's documented routes and the rehearsal's own.

Field names are the documented ones. `error_code` numbers that no source lists are marked so.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web
from pydantic import ValidationError

from .faults import POLL_FAULTS, FaultKind, Plan
from .jobs import Job, JobStore, State
from .journal import Journal, Request, Submission, shortened
from .media import MediaError, sources
from .schema import MODELS, ImageToVideo, Model, problem, problems

MAX_BODY_BYTES = 64 * 1024 * 1024
WRONG_MODEL, BAD_TOKEN, UNKNOWN_REQUEST = 400001, 400004, 404001
# Ours: no source says which numbers the service uses here.
BAD_REQUEST, TOO_MANY_REQUESTS = 400000, 429000

GATEWAY_PAGE = """<html>
<head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>gateway</center></body>
</html>
"""


class _BodyRefused(Exception):
    """A submit that was read and refused; carries the whole reply."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Api:
    """Handlers over one job store and one journal; all run in the server's own loop."""

    def __init__(self, jobs: JobStore, journal: Journal, *, origin: str, token: str) -> None:
        self._jobs, self._journal = jobs, journal
        self._origin = origin
        self._bearer = f"Bearer {token}".encode()

    def application(self) -> web.Application:
        """The routes, behind the record of every request and the bearer check."""
        # Whether a body of exactly client_max_size bytes passes differs between aiohttp versions.
        app = web.Application(middlewares=[self._gate], client_max_size=MAX_BODY_BYTES + 1)
        app.add_routes(
            [
                web.post("/v1/models/{model_id:.+}", self._submit),
                web.get("/v1/models/{model_id:.+}", self._model),
                web.get("/v1/requests/{request_id}/status", self._status),
                web.get("/v1/requests/{request_id}/result", self._result),
                web.post("/v1/requests/{request_id}/cancel", self._cancel),
                web.get("/files/{request_id}/output.mp4", self._file),
                web.post("/rehearsal/plan", self._plan),
                web.get("/rehearsal/submissions", self._submissions),
                web.get("/rehearsal/requests", self._requests),
            ]
        )
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        sent = request.headers.get(hdrs.AUTHORIZATION)
        authorized = sent is not None and hmac.compare_digest(
            sent.encode(errors="surrogateescape"), self._bearer
        )
        self._journal.requests.append(
            Request(
                request.method, request.path, request.query_string, time.monotonic(), authorized
            )
        )
        if request.path.startswith("/files/"):
            # The real file host is another one: whoever sends it the token has leaked it.
            if sent is not None:
                return _error(400, BAD_REQUEST, "A result file is fetched without Authorization.")
        elif not authorized:
            return _error(401, BAD_TOKEN, "UserAccountError: the bearer token is not valid.")
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _error(error.status, error.status * 1000, error.reason)

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        model = MODELS.get(request.match_info["model_id"])
        if model is None:
            return _wrong_model(request)
        if request.content_type != "application/json":
            return _error(400, BAD_REQUEST, "The Content-Type must be application/json.")
        body = await request.read()
        if len(body) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
        try:
            # Megabytes of base64 are decoded here: polls must not wait for that.
            payload, inputs = await asyncio.to_thread(_read_body, model, body)
        except _BodyRefused as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        job = self._jobs.add(model, inputs, self._journal.next_plan())
        self._journal.add(Submission(job.request_id, model.model_id, payload, job.submitted))
        if job.faults.take([FaultKind.LOST_REPLY]):
            return _hang_up(request)
        return web.json_response({"request_id": job.request_id, **self._urls(job)})

    async def _model(self, request: web.Request) -> web.Response:
        model = MODELS.get(request.match_info["model_id"])
        return web.json_response(model.card()) if model else _wrong_model(request)

    async def _status(self, request: web.Request) -> web.Response:
        job = self._jobs.get(request.match_info["request_id"])
        if job is None:
            return _unknown_request(request)
        if fault := _poll_fault(job):
            return fault
        urls = self._urls(job)
        state = job.state
        reply = {"request_id": job.request_id, "status": _status_word(state)}
        if state is State.IN_QUEUE:
            reply["queue_position"] = job.queue_position
        reply |= {name: urls[name] for name in ("status_url", "result_url")}
        return web.json_response(reply)

    async def _result(self, request: web.Request) -> web.Response:
        job = self._jobs.get(request.match_info["request_id"])
        if job is None:
            return _unknown_request(request)
        if fault := _poll_fault(job):
            return fault
        state, finished_at = job.state, job.finished_at
        reply: dict[str, Any] = {
            "request_id": job.request_id,
            "status": state.value,
            "created_at": _utc(job.created_at),
            "finished_at": finished_at and _utc(finished_at),
        }
        if state is State.SUCCEEDED:
            reply["output"] = {"video": f"{self._origin}/files/{job.request_id}/output.mp4"}
        elif state is State.FAILED:
            reply["error"] = job.outcome.error
        if finished_at and request.query.get("include_cost") == "true":
            reply["cost"] = job.cost_usd
        return web.json_response(reply)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._jobs.get(request.match_info["request_id"])
        if job is None:
            return _unknown_request(request)
        outcome = "cancelled" if job.cancel() else "not_cancellable"
        reply = {
            "request_id": job.request_id,
            "status": _status_word(job.state),
            "outcome": outcome,
        }
        return web.json_response(reply, status=202)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        job = self._jobs.get(request.match_info["request_id"])
        if job is None or job.state is not State.SUCCEEDED:
            return _unknown_request(request)
        if request.method == hdrs.METH_GET and (cut := job.faults.take([FaultKind.CUT_DOWNLOAD])):
            return await _send_cut(request, job.outcome.path, cut.after_bytes)
        return web.FileResponse(job.outcome.path)

    async def _plan(self, request: web.Request) -> web.Response:
        try:
            plan = Plan.from_json(await request.json())
        except ValueError as error:
            return _error(422, BAD_REQUEST, str(error))
        self._journal.plans.append(plan)
        return web.json_response({"plans": len(self._journal.plans)})

    async def _submissions(self, request: web.Request) -> web.Response:
        shown = [replace(s, payload=shortened(s.payload)) for s in self._journal.submissions]
        return web.json_response({"submissions": [asdict(submission) for submission in shown]})

    async def _requests(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": [asdict(seen) for seen in self._journal.requests]})

    def _urls(self, job: Job) -> dict[str, str]:
        base = f"{self._origin}/v1/requests/{job.request_id}"
        return {f"{name}_url": f"{base}/{name}" for name in ("status", "result", "cancel")}


def _read_body(model: Model, body: bytes) -> tuple[dict[str, Any], ImageToVideo]:
    try:
        payload = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _BodyRefused(400, _error_body(BAD_REQUEST, "The body is not JSON.")) from None
    try:
        inputs = model.body.model_validate(payload)
    except ValidationError as error:
        raise _BodyRefused(422, {"detail": problems(error)}) from None
    found = []
    for source in sources(inputs):
        try:
            source.check()
        except MediaError as refusal:
            found.append(problem(source.loc, f"{source.name} {refusal}"))
    if found:
        raise _BodyRefused(422, {"detail": found})
    return payload, inputs


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _poll_fault(job: Job) -> web.Response | None:
    fault = job.faults.take(POLL_FAULTS)
    if fault is None:
        return None
    if fault.kind == FaultKind.HTML_502:
        return web.Response(status=502, text=GATEWAY_PAGE, content_type="text/html")
    reply = _error(429, TOO_MANY_REQUESTS, "Too many requests.")
    if fault.retry_after is not None:
        reply.headers[hdrs.RETRY_AFTER] = f"{fault.retry_after:g}"
    return reply


async def _send_cut(request: web.Request, path: Path, after_bytes: int) -> web.StreamResponse:
    """Promise the whole (or the asked range), send a part, and hang up."""
    data, stat = path.read_bytes(), path.stat()
    try:
        asked = range(len(data))[request.http_range]
    except ValueError:
        asked = range(0)
    if not asked:
        raise web.HTTPRequestRangeNotSatisfiable
    reply = web.StreamResponse(headers={hdrs.ACCEPT_RANGES: "bytes"})
    reply.content_type = "video/mp4"
    reply.content_length = len(asked)
    # As FileResponse makes them: a resume may compare them with those of the first try.
    reply.etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    reply.last_modified = stat.st_mtime
    if hdrs.RANGE in request.headers:
        reply.set_status(206)
        reply.headers[hdrs.CONTENT_RANGE] = f"bytes {asked[0]}-{asked[-1]}/{len(data)}"
    await reply.prepare(request)
    part = min(after_bytes or len(asked) // 2, len(asked) - 1)
    await reply.write(data[asked[0] : asked[0] + part])
    _hang_up(request)
    return reply


def _hang_up(request: web.Request) -> web.Response:
    # close() and not abort(): what was already sent must reach the client, and nothing more.
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _status_word(state: State) -> str:
    # /status knows no "failed": a failed job has been seen to read "completed" there.
    return "completed" if state in (State.SUCCEEDED, State.FAILED) else state.value


def _wrong_model(request: web.Request) -> web.Response:
    model_id = request.match_info["model_id"]
    return _error(404, WRONG_MODEL, f"InvalidResourceIdentifier: no model {model_id!r}.")


def _unknown_request(request: web.Request) -> web.Response:
    request_id = request.match_info["request_id"]
    return _error(404, UNKNOWN_REQUEST, f"ResourceNotFound: no request {request_id!r}.")


def _error(status: int, code: int, message: str) -> web.Response:
    return web.json_response(_error_body(code, message), status=status)


def _error_body(code: int, message: str) -> dict[str, Any]:
    return {"error_code": code, "error_message": message}


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
