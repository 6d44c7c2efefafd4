"""What the routes share: the network, its thread, the open images, the queue and the annotations."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from attention_branch.errors import UserError
from attention_branch.serve.cases import Case, Cases
from attention_branch.serve.compute import Busy, Compute
from attention_branch.serve.gallery import Gallery
from attention_branch.serve.metrics import Metrics
from attention_branch.serve.predictor import Predictor
from attention_branch.serve.uploads import Limits, Upload, read_upload, safe_name

Result = TypeVar("Result")


@dataclass
class State:
    """One server's parts."""

    predictor: Predictor
    compute: Compute
    cases: Cases
    limits: Limits
    metrics: Metrics
    annotations: Path
    decoders: ThreadPoolExecutor
    saver: ThreadPoolExecutor
    gallery: Gallery | None = None
    decoding: int = 0

    async def decode(self, content: bytes, name: str) -> Upload:
        """Decode a picture on a thread of its own; `UserError` for a bad one, `Busy` when too many wait."""
        try:
            return await self.on_decoder(
                partial(read_upload, content, name, self.predictor.facts.preprocessing, self.limits)
            )
        except UserError:
            self.metrics.bad_images.inc()
            raise

    async def on_decoder(self, work: Callable[[], Result]) -> Result:
        """Run what decodes pictures on the threads for that; `Busy` when too much waits there, or for too long."""
        if self.decoding >= self.limits.waiting:
            raise Busy(f"{self.decoding} pictures are waiting to be decoded already.", 2)
        self.decoding += 1
        future = self.decoders.submit(_said_plainly, work)
        future.add_done_callback(self._decoded)
        try:
            async with asyncio.timeout(self.limits.patience):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Busy("The pictures in line before it took too long to decode.", 2) from None

    def _decoded(self, _: object) -> None:
        self.decoding -= 1

    async def on_saver(self, work: Callable[[], Result]) -> Result:
        """Run what writes annotations: one after the other, so that two cannot mix and their memory does not add up."""
        return await asyncio.wrap_future(self.saver.submit(work))

    def case(self, key: str) -> Case:
        """Return an open image, or answer 404."""
        case = self.cases.get(key)
        if case is None:
            raise HTTPException(404, "This image is not open any more; open it again.")
        return case


def _said_plainly(work: Callable[[], Result]) -> Result:
    """Run work; its `UserError` comes without the frames it rose from, whose values a cycle would keep for a while."""
    try:
        return work()
    except UserError as problem:
        said = str(problem)
    raise UserError(said)


async def uploads(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Return the files of a request as (name, bytes): those of a form, or the body itself as one picture."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        # Starlette answers 400 for a broken form, too many files and too many fields.
        async with request.form(max_files=limits.images, max_fields=32, max_part_size=65536) as form:
            found = [
                (safe_name(part.filename), await part.read())
                for _, part in form.multi_items()
                if not isinstance(part, str)
            ]
        if not found:
            raise HTTPException(422, "The form holds no file; send the pictures as files.")
        return found
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [(safe_name(request.headers.get("x-file-name")), await request.body())]
    raise HTTPException(415, "Send pictures as multipart/form-data, or one picture as the body with an image/* type.")


async def read_json(request: Request, shape: type[BaseModel]) -> Any:
    """Return a request's JSON body in its shape; 422 for anything else, however odd."""
    body = await request.body()
    try:
        return shape.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"][:4])
        raise HTTPException(
            422, f"The JSON body does not fit: {where + ': ' if where else ''}{first['msg']}."
        ) from None
