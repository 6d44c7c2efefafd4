"""Starting and stopping the server."""

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import uvicorn

from attention_branch.errors import UserError
from attention_branch.files import require_folder
from attention_branch.hardware import usable_cores
from attention_branch.serve.api import application
from attention_branch.serve.cases import Cases
from attention_branch.serve.compute import Compute
from attention_branch.serve.gallery import FolderPictures, Gallery, Pictures
from attention_branch.serve.guard import Application
from attention_branch.serve.metrics import Metrics
from attention_branch.serve.predictor import Predictor
from attention_branch.serve.protocol import PatientProtocol
from attention_branch.serve.state import State
from attention_branch.serve.uploads import Limits


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    images: Sequence[str] = (),
    data: str | None = None,
    split: str = "train",
    limit: int = 1000,
    annotations: str | Path | None = None,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    limits: Limits | None = None,
    batch: int = 16,
    device: str = "auto",
    engine: str = "auto",
) -> None:
    """Serve a run, a saved network, a hub name or an ONNX file until interrupted.

    Raises `UserError` for a network that cannot be loaded, pictures that cannot be found, and an address in use.
    """
    token = token or os.environ.get("ABN_TOKEN") or None
    limits = limits or Limits()
    home = Path(run) / "annotations" if Path(run).is_dir() else Path("annotations")
    folder = require_folder(annotations or home)
    listener = _listen(host, port)
    try:
        predictor = load_predictor(run, device=device, engine=engine, say=print)
        pictures = _pictures(run, predictor, images, data, split, limit)
        state = make_state(predictor, folder, limits=limits, batch=batch, pictures=pictures)
        app = application(state, host=host, allowed_hosts=allowed_hosts, token=token)
        # The libraries' objects stay for good: a collector that goes through them again and again holds up answers.
        gc.collect()
        gc.freeze()
        listener.listen(512)  # So that whoever reads the address can connect at once.
        _announce(state, listener, token, host)
        try:
            _run(app, listener)
        finally:
            close_state(state)
    finally:
        gc.unfreeze()
        listener.close()
    print("Stopped.", flush=True)


def load_predictor(
    run: str | Path, *, device: str = "cpu", engine: str = "torch", say: Callable[[str], None] | None = None
) -> Predictor:
    """Return the network behind a server: an ONNX file by onnxruntime, anything else by torch.

    With the engine "onnxruntime" programs are answered by an ONNX file of the same network, made when the server
    starts; "auto" does so on a processor, where onnxruntime is installed and the network can be exported.
    """
    if str(run).endswith(".onnx"):
        from attention_branch.serve.onnx_predictor import OnnxPredictor

        return OnnxPredictor(run)
    from attention_branch.hardware import chosen_device
    from attention_branch.serve.torch_predictor import TorchPredictor

    predictor = TorchPredictor(run, device=chosen_device(device))
    if engine == "torch" or (engine == "auto" and predictor.model.device.type != "cpu"):
        return predictor
    from attention_branch.serve.accelerated import accelerated

    return accelerated(predictor, Path(run), needed=engine == "onnxruntime", say=say or (lambda _: None))


def make_state(
    predictor: Predictor,
    annotations: Path,
    *,
    limits: Limits | None = None,
    batch: int = 16,
    pictures: Pictures | None = None,
    memory: int = 512 * 2**20,
) -> State:
    """Return a server's parts, its compute thread running; `close_state` ends them."""
    limits = limits or Limits()
    cases = Cases(memory=memory)
    counted: list[Metrics] = []
    compute = Compute(
        predictor.predict,
        lanes=predictor.lanes,
        largest=batch,
        waiting=limits.waiting,
        patience=limits.patience,
        observe=lambda images, seconds: counted[0].batch(images, seconds),
    )
    counted.append(Metrics(predictor.facts, lambda: compute.queued, lambda: len(cases)))
    decoders = ThreadPoolExecutor(min(4, usable_cores()), "abn-decode")
    saver = ThreadPoolExecutor(1, "abn-save")
    state = State(predictor, compute, cases, limits, counted[0], annotations, decoders, saver)
    if pictures is not None:
        state.gallery = Gallery(pictures, predictor.facts, compute, predictor.predict, annotations, limits)
        state.gallery.start()
    return state


def close_state(state: State) -> None:
    """Stop what runs in the background, and keep what was found out."""
    if state.gallery is not None:
        state.gallery.stop()
    state.compute.close()
    state.saver.shutdown(wait=True)
    state.decoders.shutdown(wait=False, cancel_futures=True)
    if state.gallery is not None:
        state.gallery.close()


def _pictures(
    run: str | Path, predictor: Predictor, images: Sequence[str], data: str | None, split: str, limit: int
) -> Pictures | None:
    if images:
        return FolderPictures(images, predictor.facts)
    if data is None and not Path(run).is_dir():
        return None
    from attention_branch.serve.split_pictures import run_pictures

    return run_pictures(run, data, split, limit)


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before the network is loaded, so that one in use is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as problem:
        listener.close()
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(f"The address {host}:{port} cannot be used ({reason}); try --port 0 for a free one.") from None
    return listener


def _announce(state: State, listener: socket.socket, token: str | None, host: str) -> None:
    name, port = listener.getsockname()[:2]
    shown = f"[{name}]" if ":" in name else name
    facts = state.predictor.facts
    print(f"{facts.name} from {facts.source}, by {facts.engine}.")
    if state.gallery is not None:
        print(f"Pictures to go through: {state.gallery.pictures.title} ({len(state.gallery.pictures.names)}).")
    print(f"Annotations go to {state.annotations}.")
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        print("Everybody who reaches this address can use it; --token TOKEN asks for one.")
    query = f"?token={quote(token, safe='')}" if token else ""
    print(f"Open http://{shown}:{port}/{query}  (Ctrl-C stops)", flush=True)


def _run(app: Application, listener: socket.socket) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=True,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        backlog=512,
        ws="none",
    )
    # uvicorn closes in good order, then raises the signal again: a plain SIGTERM would end us before we have closed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
