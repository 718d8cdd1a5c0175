"""The web application: which address answers with what."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cpeal_jax.errors import InputError
from cpeal_jax.labeling import thumbnails
from cpeal_jax.labeling.page import access, recording
from cpeal_jax.labeling.page.board import Board
from cpeal_jax.labeling.page.desk import Desk

STATIC = Path(__file__).parent / "static"
TYPES = {
  "page.html": "text/html; charset=utf-8",
  "page.css": "text/css; charset=utf-8",
  "page.js": "text/javascript; charset=utf-8",
  "link.js": "text/javascript; charset=utf-8",
  "grid.js": "text/javascript; charset=utf-8",
  "icon.svg": "image/svg+xml",
}
# The sides in pixels that pictures are shown with, and the quality as JPEG.
SIDES = {"small": 160, "large": 1200}
QUALITY = 90
MOST_IN_GRID = 200
MOST_OPERATIONS = 5_000


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
    if desk.board is None or id_ not in desk.board.pool:
      return PlainTextResponse("There is no such image.\n", 404)
    call = functools.partial(_picture, desk.board, id_, side)
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


def _picture(board: Board, id_: str, side: int) -> tuple[bytes, str]:
  try:
    data = board.read(id_)
  except InputError:
    return b"", ""
  return thumbnails.picture(
    data,
    side=side,
    value_range=board.value_range,
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
