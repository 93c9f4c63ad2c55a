"""Serves a web page on your own machine that protects faces in photos.

    python -m experiments.webapp

Open the printed address, drop photos onto the page, compare before and after, read the
recognisers' verdicts, and download the written files. They keep their names, carry none of
the photos' metadata, and are the same as those of `experiments.protect`. Photos that were
protected before are refused.

Only this machine can reach the page (it listens on 127.0.0.1), and the page loads nothing from
the internet. Uploads and results are kept in a temporary folder, which is deleted when you stop
the server with Ctrl-C.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.photos import Protector, Strength, load_detector
from experiments._common import cli
from experiments._common.flags import setting
from experiments._protect.protector_settings import ProtectorSettings
from experiments._webapp.page import page, style

if TYPE_CHECKING:
    from starlette.middleware import Middleware

HOST = "127.0.0.1"
# 50 megapixels of RGB without compression.
_MAX_FILE_SIZE = "160mb"
# Seconds between checks for old uploads, and their age at which they are deleted.
_CLEANING = (3600, 86400)
# The names of temporary folders begin with this, followed by the process's number.
_FOLDER = "deid_jax_webapp_"
# Gradio reads these when it is imported.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebappSettings(ProtectorSettings):
    """Settings of `experiments.webapp`."""

    port: int = setting(7860, "The page's port on this machine; 0: any free one.")


def run(settings: WebappSettings) -> None:
    """Serves the page until Ctrl-C.

    Raises:
      InputError: bad settings, or Gradio is not installed.
    """
    with _ended_in_order(), serve(settings) as address:
        print(f"Photos are protected at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def serve(settings: WebappSettings) -> Iterator[str]:
    """Serves the page while the block runs; yields its address. Raises as `run` does."""
    port = _free(settings.port)
    protector = protector_of(settings)
    _remove_left_behind()
    folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}_")
    try:
        with _environment(_ENVIRONMENT | {"GRADIO_TEMP_DIR": folder, **_direct()}):
            blocks = page(protector, Path(folder), _CLEANING)
            try:
                blocks.launch(
                    server_name=HOST,
                    server_port=port,
                    share=False,
                    inbrowser=False,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=True,
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    ssr_mode=False,
                    pwa=False,
                    mcp_server=False,
                    max_file_size=_MAX_FILE_SIZE,
                    app_kwargs={"middleware": _own_names_only()},
                    **style(),
                )
                yield f"http://{HOST}:{port}"
            finally:
                blocks.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def protector_of(settings: WebappSettings) -> Protector:
    """The page's protector; raises `InputError` for bad settings."""
    settings.check()
    return Protector(
        settings.verifiers(),
        jax.random.key(settings.seed),
        detector=load_detector(settings.detector),
        strength=Strength(num_steps=settings.num_steps),
        mark=settings.mark,
    )


def _free(port: int) -> int:
    """The port itself, or a free port if it is 0."""
    count("port", port, most=65535)
    with socket.socket() as probe:
        # Like the server, count a port as free while its last connections are closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror})") from error
        return int(probe.getsockname()[1])


def _own_names_only() -> "list[Middleware]":
    """Middleware that only answers requests to this machine's own names.

    Otherwise another site could point its domain name to this machine and read the page.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]


def _direct() -> dict[str, str]:
    """Settings by which Gradio checks its own server directly, without a proxy."""
    names = ("no_proxy", "NO_PROXY")
    return {name: ",".join(filter(None, [os.environ.get(name), HOST])) for name in names}


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Ends the block on Ctrl-C, SIGTERM, or when the terminal closes."""
    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(kind, signal.default_int_handler) for kind in kinds]
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # The terminal may be gone.
            print("ended", flush=True)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _remove_left_behind() -> None:
    """Removes the folders of pages that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*_*"):
        process = left.name.removeprefix(_FOLDER).partition("_")[0]
        if process.isdecimal() and left.is_dir() and not left.is_symlink():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except (OSError, OverflowError):
                continue  # It belongs to another user.


main = cli.binary(run, WebappSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
