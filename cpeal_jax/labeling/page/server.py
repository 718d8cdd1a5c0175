"""The page's web server, in a process of its own that starts without jax.

It is started with pipes by `handle.Page`. A line on its standard input is a
JSON object that says what the run is doing; a line on its standard output says
where the page is, or that the person wants to stop. It ends when its standard
input ends, so it never outlives the run.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import uvicorn

from cpeal_jax.labeling.page import access
from cpeal_jax.labeling.page.app import make_app
from cpeal_jax.labeling.page.desk import Desk

# The port that is tried first, so that a tunnel by ssh can be used again.
USUAL_PORT = 8765


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
