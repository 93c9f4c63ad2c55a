"""A page on your own machine that protects the faces in photos against face recognisers.

    python -m experiments.webapp
        --recogniser=mobilefacenet_ms1m:A.npz,mobilefacenet_casia:B.npz

Open the address that it prints, drop photos, compare before and after, read what recognisers
say, and download the protected files: without metadata, under their own names. It is
`experiments.protect` with a page around it, and gives the same files.

Only this machine reaches the page (it listens on 127.0.0.1), and the page asks no other for
anything. What is uploaded and made lies in a temporary folder that goes when Ctrl-C ends it.
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
from typing import Any

from deid_jax.checks import count
from deid_jax.errors import InputError
from experiments._common import cli
from experiments._common.cli import setting
from experiments._protect import protect_inputs
from experiments._webapp.webapp_page import page, style
from experiments._webapp.webapp_uploads import Studio
from experiments.protect import ProtectSettings

HOST = "127.0.0.1"
# Of one file: 50 megapixels of RGB, without compression.
_MAX_FILE_SIZE = "160mb"
# Uploads of tabs that stay open go after a day, looked at every hour; in seconds.
_CLEANING = (3600, 86400)
# How temporary folders' names begin; then comes the process's number.
_FOLDER = "deid_jax_webapp_"
# Read by Gradio when it is imported.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def _as_in_protect(name: str) -> Any:
    """A field that means what it means to `experiments.protect`."""
    (field,) = (f for f in dataclasses.fields(ProtectSettings) if f.name == name)
    return setting(field.default, **field.metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebappSettings:
    """Settings of `experiments.webapp`."""

    recogniser: str = _as_in_protect("recogniser")
    judge: str = _as_in_protect("judge")
    threshold: float | None = _as_in_protect("threshold")
    detector: str = _as_in_protect("detector")
    num_steps: int = _as_in_protect("num_steps")
    port: int = setting(7860, "The page's port on this machine; 0: any that is free.")
    seed: int = _as_in_protect("seed")


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
    """The page's address, for as long as the block runs.

    Raises:
      InputError: see `run`.
    """
    port = _free(settings.port)
    chosen = studio(settings)
    _remove_left_behind()
    folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}_")
    try:
        with _environment(_ENVIRONMENT | {"GRADIO_TEMP_DIR": folder, **_direct()}):
            blocks = page(chosen, Path(folder), _CLEANING)
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


def studio(settings: WebappSettings) -> Studio:
    """What the page works with.

    Raises:
      InputError: bad settings, a recogniser that cannot be loaded or has no threshold.
    """
    count("num_steps", settings.num_steps, least=1)
    count("seed", settings.seed, most=2**31 - 1)
    detector = protect_inputs.detector(settings.detector)
    witnesses = protect_inputs.witnesses(
        settings.recogniser, settings.judge, settings.threshold
    )
    return Studio(detector, witnesses, settings.num_steps, settings.seed)


def _free(port: int) -> int:
    """The port, or one that is free in the place of 0."""
    count("port", port, most=65535)
    with socket.socket() as probe:
        # As the server will: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be had ({error.strerror})") from error
        return int(probe.getsockname()[1])


def _own_names_only() -> list[Any]:
    """Answers what is asked of this machine by name alone.

    Else pages of others could have their name point to this machine, and see all that it shows.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]


def _direct() -> dict[str, str]:
    """Has Gradio ask its own server whether it is up, not a proxy."""
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
    """Ends the block at Ctrl-C, or when the process is told to end or its terminal closes."""
    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(kind, signal.default_int_handler) for kind in kinds]
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # Of a terminal that is gone.
            print("ended", flush=True)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _remove_left_behind() -> None:
    """Removes photos of pages that were killed: folders whose process is no more."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*_*"):
        process = left.name.removeprefix(_FOLDER).partition("_")[0]
        if process.isdecimal() and left.is_dir() and not left.is_symlink():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except (OSError, OverflowError):
                continue  # Somebody else's.


main = cli.binary(run, WebappSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
