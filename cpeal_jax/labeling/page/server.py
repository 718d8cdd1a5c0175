"""The page's web server, in a process of its own that starts without jax.

It is started with pipes by `handle.Page`. A line on its standard input is a
JSON object that says what the run is doing; a line on its standard output says
where the page is, or that the person wants to stop. It ends when its standard
input ends, so it never outlives the run.
"""

import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cpeal_jax.data import reading
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import thumbnails
from cpeal_jax.labeling.page import access, recording
from cpeal_jax.labeling.page.board import Board

STATIC = Path(__file__).parent / "static"
TYPES = {
  "page.html": "text/html; charset=utf-8",
  "page.css": "text/css; charset=utf-8",
  "page.js": "text/javascript; charset=utf-8",
  "link.js": "text/javascript; charset=utf-8",
  "grid.js": "text/javascript; charset=utf-8",
  "icon.svg": "image/svg+xml",
}
# The port that is tried first, so that a tunnel by ssh can be used again.
USUAL_PORT = 8765
# The sides in pixels that pictures are shown with, and the quality as JPEG.
SIDES = {"small": 160, "large": 1200}
QUALITY = 90
MOST_IN_GRID = 200
MOST_OPERATIONS = 5_000
# After the run has ended, an open page has so long to hear of it.
LAST_WORDS_SECONDS = 3.0


@dataclasses.dataclass
class Desk:
  """What the server knows beside the workdir.

  Attributes:
    board: the workdir; None until the run has opened it.
    phase: what the run is doing: `starting`, `asking`, `working` or `ended`.
    progress: the stage of the run that is under way, and how far it is.
    trained: whether the run has trained since it started. The first time takes
      longer, since programs are compiled.
    certified: how much is certified so far; empty outside of a certificate.
    ended: how the run ended, for the person; empty while it runs.
    heading: the same in a word or two.
    heard: when each tab asked last, in seconds of the monotonic clock.
    told: the tabs that have learned how the run ended.
    done: the number of the last operation of each tab, so that a request that
      is sent again does nothing twice.
  """

  board: Board | None = None
  phase: str = "starting"
  progress: dict[str, Any] = dataclasses.field(default_factory=dict)
  trained: bool = False
  certified: str = ""
  ended: str = ""
  heading: str = ""
  heard: dict[str, float] = dataclasses.field(default_factory=dict)
  told: set[str] = dataclasses.field(default_factory=set)
  done: dict[str, int] = dataclasses.field(default_factory=dict)

  def hears(self, tab: str) -> None:
    """Notes that a tab asks what is new."""
    self.heard[tab] = time.monotonic()
    if self.ended:
      self.told.add(tab)

  def waits(self) -> bool:
    """Returns whether a tab that is open has not learned how the run ended."""
    since = time.monotonic() - LAST_WORDS_SECONDS
    tabs = {tab for tab, time_ in list(self.heard.items()) if time_ > since}
    return bool(self.ended) and not tabs <= self.told

  def hear(self, message: dict[str, Any]) -> None:
    """Takes a message of the run."""
    match message:
      case {"workdir": workdir, "range": value_range}:
        black_white = tuple(value_range) if value_range else None
        self.board = Board(workdir, black_white)
      case {"apart": path}:
        if self.board is not None:
          self.board.ask_apart(path)
      case {"phase": phase}:
        self.phase, self.progress = phase, {}
      case {"stage": name, "done": done, "total": total}:
        self.progress = message if total != done else {}
        self.trained |= name.startswith("fit round") and total == done
      case {"certified": text}:
        self.certified = text
      case {"ended": text, "heading": heading}:
        self.phase, self.ended, self.heading = "ended", text, heading


def make_app(
  desk: Desk,
  *,
  token: str,
  once: str = "",
  on_stop: Callable[[], None] = lambda: None,
) -> access.Guard:
  """Returns the web application.

  Args:
    desk: what the server knows.
    token: what each address must begin with.
    once: as in `access.Guard`.
    on_stop: called when the person wants the run to stop.
  """

  async def static(request: Request) -> Response:
    name = request.path_params.get("name", "page.html")
    if name not in TYPES:
      return PlainTextResponse("There is no such file.\n", 404)
    return Response(_static(name), media_type=TYPES[name])

  async def state(request: Request) -> Response:
    desk.hears(request.query_params.get("tab", ""))
    known = request.query_params.get("version", "")
    return JSONResponse(await run_in_threadpool(_state, desk, known))

  async def record(request: Request) -> Response:
    content = await _content(request)
    operations = content.get("operations")
    if not isinstance(operations, list) or not all(
      isinstance(operation, dict) for operation in operations
    ):
      return _problem(400, "A request has a list of operations.")
    if len(operations) > MOST_OPERATIONS:
      return _problem(413, f"At most {MOST_OPERATIONS} operations at a time.")
    if desk.board is None:
      return _problem(409, "Nothing is asked yet: wait for the first images.")
    call = functools.partial(_record, desk, desk.board, str(content.get("tab")))
    try:
      return JSONResponse(
        {"results": await run_in_threadpool(call, operations)}
      )
    except InputError as error:
      return _problem(507, str(error))

  async def image(request: Request) -> Response:
    side = SIDES.get(request.query_params.get("side", ""), SIDES["large"])
    id_ = request.query_params.get("id", "")
    found = desk.board.pool.get(id_) if desk.board else None
    if desk.board is None or found is None:
      return PlainTextResponse("There is no such image.\n", 404)
    call = functools.partial(_picture, found.path, side, desk.board.value_range)
    data, kind = await run_in_threadpool(call)
    if not data:
      return PlainTextResponse("The image cannot be shown.\n", 404)
    # No image changes during a run, and the next one has another token.
    kept = {"cache-control": "private, max-age=86400"}
    return Response(data, media_type=kind, headers=kept)

  async def grid(request: Request) -> Response:
    return await _page_of(request, desk.board and desk.board.predicted)

  async def answered(request: Request) -> Response:
    return await _page_of(request, desk.board and desk.board.answered)

  async def stop(request: Request) -> Response:
    on_stop()
    return JSONResponse({})

  routes = [
    Route("/", static),
    Route("/static/{name}", static),
    Route("/state", state),
    Route("/record", record, methods=["POST"]),
    Route("/image", image),
    Route("/grid", grid),
    Route("/answered", answered),
    Route("/stop", stop, methods=["POST"]),
  ]
  handlers: Any = {InputError: _input_error, ClientDisconnect: _gone}
  app = Starlette(routes=routes, exception_handlers=handlers)
  app.router.redirect_slashes = False
  return access.Guard(app, token=token, once=once)


@functools.cache
def _static(name: str) -> bytes:
  return (STATIC / name).read_bytes()


def _problem(status: int, text: str) -> Response:
  return JSONResponse({"error": text}, status)


async def _input_error(_: Request, error: Exception) -> Response:
  return _problem(500, str(error))


async def _gone(_: Request, error: Exception) -> Response:
  return _problem(400, "The request was cut off.")


async def _content(request: Request) -> dict[str, Any]:
  """Returns the JSON object of a request; an empty one if it has none."""
  data = b""
  async for chunk in request.stream():
    data += chunk
    if len(data) > access.MOST_BYTES:
      return {}
  try:
    content = json.loads(data)
  except (ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}


def _state(desk: Desk, known: str) -> dict[str, Any]:
  """Returns all that an open page asks for again and again."""
  answer: dict[str, Any] = {
    "phase": desk.phase,
    "progress": desk.progress,
    "trained": desk.trained,
    "certified": desk.certified,
    "ended": desk.ended,
    "heading": desk.heading,
  }
  if desk.board is not None:
    # The phase is in it, since an estimate is written without a new answer.
    version = f"{desk.board.version()}.{desk.phase}"
    answer["version"] = version
    answer["open"] = len(desk.board.open_questions())
    if version != known:
      answer["batch"] = desk.board.batch()
  return answer


def _record(
  desk: Desk, board: Board, tab: str, operations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Records what the tab has not sent before."""
  with board.lock:
    last = desk.done.get(tab, -1)
    numbers = [operation.get("n") for operation in operations]
    is_new = [not isinstance(n, int) or n > last for n in numbers]
    new = [o for o, yes in zip(operations, is_new, strict=True) if yes]
    results = iter(recording.record(board, new))
    answer = [
      next(results) if yes else {"ok": True, "note": ""} for yes in is_new
    ]
    known = [n for n in numbers if isinstance(n, int)]
    desk.done[tab] = max([last, *known])
    return [
      result | {"n": n} for result, n in zip(answer, numbers, strict=True)
    ]


def _picture(
  path: str, side: int, value_range: tuple[float, float] | None
) -> tuple[bytes, str]:
  try:
    data = reading.read_bytes(path)
  except InputError:
    return b"", ""
  return thumbnails.picture(
    data,
    side=side,
    value_range=value_range,
    quality=QUALITY,
    lossless_side=thumbnails.LOSSLESS_SIDE,
  )


async def _page_of(request: Request, find: Any) -> Response:
  """Returns some of the images that `find` returns for a class."""
  values = request.query_params
  try:
    offset = max(0, int(values.get("offset", "0")))
    count = min(MOST_IN_GRID, max(1, int(values.get("count", "60"))))
  except ValueError:
    return _problem(400, "offset and count are whole numbers.")
  if find is None:
    return JSONResponse({"total": 0, "images": []})
  call = functools.partial(
    find, values.get("class", ""), offset=offset, count=count
  )
  total, images = await run_in_threadpool(call)
  return JSONResponse({"total": total, "images": images})


def listen(port: int) -> socket.socket:
  """Returns a socket on 127.0.0.1.

  Args:
    port: the port; 0 for the usual one or, if that is taken, any free one.

  Raises:
    OSError: the port is taken or not allowed.
  """
  for choice in (port,) if port else (USUAL_PORT, 0):
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # A port whose last connections are just being closed can be used again.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      server.bind(("127.0.0.1", choice))
      server.listen(128)  # From now on a browser may connect, and waits.
      return server
    except OSError:
      server.close()
      if choice == 0 or port:
        raise
  raise AssertionError("unreachable")


def _say(message: dict[str, Any]) -> None:
  """Sends a message to the run."""
  sys.stdout.write(json.dumps(message) + "\n")
  sys.stdout.flush()


def _follow(desk: Desk) -> None:
  """Reads what the run says until it ends, and gives the page its last words.

  Each open page asks once more and shows how the run ended. If the run was
  killed, there is nothing to tell.
  """
  for line in sys.stdin.buffer:
    desk.hear(json.loads(line))
  while desk.waits():
    time.sleep(0.02)
  time.sleep(0.1 if desk.told else 0)  # The answer must leave.


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
  """Serves until the process ends; if the server fails, the process ends."""
  try:
    server.run(sockets=[listener])
  finally:
    os._exit(1)


def _reason(error: OSError | OverflowError) -> str:
  """Returns why a port cannot be used."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  return "it is above 65535"


def main() -> int:
  # Ctrl-C is for the run, which then ends this process.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  port = int(sys.argv[1])
  try:
    listener = listen(port)
  except (OSError, OverflowError) as error:
    _say({"error": f"port {port} cannot be used ({_reason(error)})"})
    return 1
  desk, token, once = Desk(), access.new_token(), access.new_token()
  app = make_app(
    desk, token=token, once=once, on_stop=lambda: _say({"stop": True})
  )
  server = uvicorn.Server(
    uvicorn.Config(
      app,
      http="h11",
      ws="none",
      lifespan="off",
      access_log=False,  # The addresses have the token in them.
      log_level="critical",
      server_header=False,
      timeout_keep_alive=60,
    )
  )
  # In a thread, since in the main thread uvicorn takes over Ctrl-C.
  threading.Thread(target=_serve, args=(server, listener), daemon=True).start()
  address = f"http://127.0.0.1:{listener.getsockname()[1]}"
  _say({"address": f"{address}/{token}/", "once": f"{address}/{once}"})
  _follow(desk)
  os._exit(0)


if __name__ == "__main__":
  sys.exit(main())
