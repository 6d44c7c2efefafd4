"""`abn serve`: its options. Heavy imports wait until they are needed."""

from typing import Annotated, Literal

from tyro.conf import Positional, arg

from attention_branch.errors import UserError


def serve(
    run: Annotated[
        Positional[str],
        arg(metavar="RUN", help="A run, a saved network's folder, a hub name, or a file of abn export."),
    ],
    *,
    images: Annotated[
        tuple[str, ...], arg(help="Pictures to go through: files, folders or quoted patterns. Left out: the data.")
    ] = (),
    data: Annotated[
        str | None, arg(help="Data whose pictures to go through. Left out: the data it was trained on, if at hand.")
    ] = None,
    split: Annotated[Literal["train", "validation", "test"], arg(help="Split of the data to go through.")] = "train",
    limit: Annotated[int, arg(help="Pictures of the data to go through, drawn at random.")] = 1000,
    annotations: Annotated[
        str | None, arg(help="Folder for saved maps. Left out: RUN/annotations, or annotations.")
    ] = None,
    host: Annotated[str, arg(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, arg(help="Port; 0 takes a free one.")] = 7860,
    allow_host: Annotated[
        tuple[str, ...], arg(help="Further names that this server is reached by, behind a proxy for instance.")
    ] = (),
    token: Annotated[
        str | None, arg(help="Answer only those who know this word. Left out: the variable ABN_TOKEN, or everybody.")
    ] = None,
    max_body: Annotated[int, arg(help="Largest request, in MiB.")] = 32,
    max_pixels: Annotated[int, arg(help="Largest picture, in millions of pixels.")] = 50,
    max_images: Annotated[int, arg(help="Most images of a request.")] = 32,
    max_waiting: Annotated[int, arg(help="Most images in line; further ones are told to come again (503).")] = 256,
    max_wait: Annotated[float, arg(help="Longest time in line, in seconds; then 503.")] = 20.0,
    batch_size: Annotated[int, arg(help="Most images computed at once.")] = 16,
    device: Annotated[str, arg(help="cpu, cuda, cuda:1, ...; auto takes a GPU when there is one.")] = "auto",
    engine: Annotated[
        Literal["auto", "torch", "onnxruntime"],
        arg(help="What answers programs; auto takes onnxruntime on a processor where it is installed."),
    ] = "auto",
) -> int:
    """Open a page to look at predictions, question them with maps of your own and correct them; also an HTTP API."""
    try:
        from attention_branch.serve.run import serve as run_server
        from attention_branch.serve.uploads import Limits
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("attention_branch"):
            raise
        raise UserError(f"'{problem.name}' is not installed; pip install 'attention-branch[serve]'.") from problem
    for name, value in (("max_body", max_body), ("max_pixels", max_pixels), ("max_images", max_images)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more.")
    if images and (data is not None or split != "train" or limit != 1000):
        raise UserError("--images names the pictures to go through; leave out --data, --split and --limit.")
    if max_waiting < 1 or batch_size < 1 or not max_wait > 0:
        raise UserError("max_waiting, max_wait and batch_size must be above 0.")
    limits = Limits(
        body=max_body * 2**20,
        pixels=max_pixels * 1_000_000,
        images=max_images,
        waiting=max_waiting,
        patience=max_wait,
        in_flight=max(8 * max_body, 256) * 2**20,
    )
    run_server(
        run,
        host=host,
        port=port,
        images=images,
        data=data,
        split=split,
        limit=limit,
        annotations=annotations,
        token=token,
        allowed_hosts=allow_host,
        limits=limits,
        batch=batch_size,
        device=device,
        engine=engine,
    )
    return 0
