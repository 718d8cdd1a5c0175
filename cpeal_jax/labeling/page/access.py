"""Lets in only whoever has the token, and only through this machine's names.

The server listens on 127.0.0.1 alone. A page of another site that is open in
the same browser could still send requests there, and by a name of its own that
leads to 127.0.0.1 it could read the answers. So each request must name this
machine as its host, and its address must begin with the token.
"""

import re
import secrets

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Any port is allowed, since `ssh -L` may show the page under another one.
LOCAL = re.compile(
  r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE
)
MOST_BYTES = 1 << 20
HEADERS = {
  # Nothing is loaded from elsewhere, no script stands in the HTML, and no other
  # page may show this one in a frame.
  "content-security-policy": (
    "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
  ),
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  # The address has the token in it, which no other site may learn.
  "referrer-policy": "no-referrer",
  "cross-origin-resource-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
}


def new_token() -> str:
  """Returns a random text that nobody can guess, of letters for an address."""
  return secrets.token_urlsafe(24)


class Guard:
  """Answers requests that may not pass; strips the token from the others.

  A browser is started with an address that other users of the machine can read
  in the list of processes. So this address has another random text, `once`,
  which leads to the page a single time.
  """

  def __init__(self, app: ASGIApp, *, token: str, once: str = ""):
    self._app = app
    self._token = token.encode()
    self._once = once.encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      return
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
      headers.setdefault(name.lower(), value)
    refusal = _refusal(headers) or self._strip(scope)
    safe = _with_headers(send)
    if refusal:
      status, text = refusal
      await PlainTextResponse(f"{text}\n", status)(scope, receive, safe)
      return
    if not scope["path"]:  # The page's own addresses are relative to "TOKEN/".
      response = RedirectResponse(f"/{self._token.decode()}/")
      await response(scope, receive, safe)
      return
    await self._app(scope, receive, safe)

  def _strip(self, scope: Scope) -> tuple[int, str] | None:
    """Removes the token from the path; returns a refusal if it is not there."""
    first, slash, rest = scope["path"].removeprefix("/").partition("/")
    if self._once and secrets.compare_digest(first.encode(), self._once):
      self._once, scope["path"] = b"", ""
      return None
    if not secrets.compare_digest(first.encode(), self._token):
      return 403, (
        "This address lacks the right token. The program printed the address "
        "of the page when it started; an earlier one does not work any more."
      )
    scope["path"] = f"/{rest}" if slash else ""
    return None


def _refusal(headers: dict[bytes, bytes]) -> tuple[int, str] | None:
  host = headers.get(b"host", b"").decode("latin-1")
  if not LOCAL.fullmatch(host):
    return 403, "This page is only served as 127.0.0.1 or localhost."
  origin = headers.get(b"origin", b"").decode("latin-1")
  if origin and not LOCAL.fullmatch(origin.partition("://")[2]):
    return 403, "Another site may not use this page."
  length = headers.get(b"content-length", b"0").decode("latin-1")
  if not length.isdecimal() or int(length) > MOST_BYTES:
    return 413, f"A request has at most {MOST_BYTES} bytes."
  return None


def _with_headers(send: Send) -> Send:
  async def safe(message: Message) -> None:
    if message["type"] == "http.response.start":
      names = {name.lower() for name, _ in message["headers"]}
      fixed = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
      if b"cache-control" not in names:
        fixed.append((b"cache-control", b"no-store"))
      message["headers"] = [*message["headers"], *fixed]
    await send(message)

  return safe
