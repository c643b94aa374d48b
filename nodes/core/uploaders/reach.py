"""Whether an address really gives the bytes, asked as RunComfy asks: a GET and nothing else.

What this machine sees is not always what RunComfy sees, so most of what is seen only makes a
warning.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import plain_http

PEEK_BYTES = 1024
CONNECT_S, READ_S = 5.0, 10.0


@dataclass(frozen=True)
class Sight:
    """What stood at the address: ``saw`` is a clause, empty where it is the bytes themselves.

    ``status_code`` is None where no answer came.
    """

    saw: str
    status_code: int | None = None
    content: bytes = b""

    @property
    def is_there(self) -> bool:
        """The address gave the bytes."""
        return not self.saw


def look(url: str, data: bytes) -> Sight:
    """Fetch the beginning of ``url`` and hold it against that of ``data``."""
    try:
        reply = plain_http.ask(
            "GET",
            url,
            headers={"Range": f"bytes=0-{PEEK_BYTES - 1}"},
            most_bytes=PEEK_BYTES,
            connect_s=CONNECT_S,
            read_s=READ_S,
        )
    except plain_http.Unreachable as error:
        return Sight(_no_answer(url, error))
    if reply.status_code in (200, 206) and reply.content == data[:PEEK_BYTES]:
        return Sight("", reply.status_code)
    return Sight(_wrong_answer(url, reply), reply.status_code, reply.content)


def _no_answer(url: str, error: plain_http.Unreachable) -> str:
    host = urlsplit(url).hostname
    if error.kind == "name":
        return f"the name {host} is not known here, so look at its spelling"
    if error.kind == "certificate":
        return f"the certificate of {host} is not valid ({error})"
    return (
        f"no answer from {host} ({error}). Many routers do not let a machine reach its own public "
        "address (NAT); RunComfy may reach it all the same"
    )


def _wrong_answer(url: str, reply: plain_http.Reply) -> str:
    code = reply.status_code
    target = urlsplit(reply.headers.get("Location", "")).hostname
    if 300 <= code < 400:
        elsewhere = f" to {target}" if target and target != urlsplit(url).hostname else ""
        return f"a redirect{elsewhere} (HTTP {code}), as a login in front of it makes"
    if code in (401, 403, 407):
        return f"a login or a ban (HTTP {code})"
    if code in (502, 503, 504, 530):
        return f"a gateway that does not reach this machine (HTTP {code})"
    if reply.is_html:
        return f"a web page instead of the picture (HTTP {code}), such as a login or an error page"
    if code == 404:
        return "a server that does not know the picture (HTTP 404), perhaps another one than this"
    return f"something else than the picture (HTTP {code}), perhaps from another server"
