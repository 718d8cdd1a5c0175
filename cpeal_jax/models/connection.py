"""Tells at once whether the hub can be reached, and keeps its retries quiet.

Without a network, huggingface_hub tries the same request for half a minute and
prints every try, since it cannot know that the network will not come back.
"""

import contextlib
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

from cpeal_jax.errors import reason

# A machine that has a network connects in much less.
PATIENCE_SECONDS = 4.0


def problem(endpoint: str) -> str:
  """Returns why no connection can be opened; empty if one can.

  A proxy that the environment names is connected to in place of the hub.

  Args:
    endpoint: the address of the hub, such as https://huggingface.co.
  """
  host, port = _first_stop(endpoint)
  if not host:
    return ""
  found = [f"it does not answer within {PATIENCE_SECONDS:g} s"]

  def connect() -> None:
    try:
      socket.create_connection((host, port), PATIENCE_SECONDS).close()
      found[:] = [""]
    except OSError as error:
      found[:] = [error.strerror or reason(error)]

  # A name server that does not answer would take longer, and looking a name up
  # has no time limit of its own.
  thread = threading.Thread(target=connect, name="connection", daemon=True)
  thread.start()
  thread.join(PATIENCE_SECONDS)
  return f"no connection to {host}: {found[0]}" if found[0] else ""


def _first_stop(endpoint: str) -> tuple[str, int]:
  """Returns the host and port that a request to the hub connects to first."""
  address = urllib.parse.urlsplit(endpoint)
  proxies = urllib.request.getproxies()
  proxy = proxies.get(address.scheme) or proxies.get("all")
  try:
    if proxy and not urllib.request.proxy_bypass(address.netloc):
      address = urllib.parse.urlsplit(
        proxy if "://" in proxy else f"http://{proxy}"
      )
    default = 443 if address.scheme == "https" else 80
    return address.hostname or "", address.port or default
  except ValueError:  # The port is no number; the request itself says so.
    return "", 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps huggingface_hub from printing each of its tries."""
  from huggingface_hub.utils import logging

  before = logging.get_verbosity()
  logging.set_verbosity_error()
  try:
    yield
  finally:
    logging.set_verbosity(before)
