"""The application: the routes for programs, what every error looks like, and the parts around them."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from attention_branch import __version__
from attention_branch.errors import UserError
from attention_branch.serve.compute import Busy
from attention_branch.serve.corrections import corrections
from attention_branch.serve.guard import Application, Guard
from attention_branch.serve.interactive import interactive
from attention_branch.serve.metrics import CONTENT_TYPE, Measured
from attention_branch.serve.page_routes import page
from attention_branch.serve.records import finite, prediction
from attention_branch.serve.schemas import ErrorReply, PredictReply
from attention_branch.serve.state import State, uploads

log = logging.getLogger("attention_branch.serve")

_ERRORS = {
    status: {"model": ErrorReply, "description": what}
    for status, what in {
        400: "Broken form.",
        401: "Token missing or wrong.",
        403: "Sent by another site's page.",
        408: "The body came too slowly.",
        413: "Body too large.",
        415: "Neither a form nor a picture.",
        422: "No picture could be read, or a parameter does not fit.",
        503: "Too much to do; come again after Retry-After seconds.",
    }.items()
}
_FILES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def application(
    state: State, *, host: str = "127.0.0.1", allowed_hosts: Iterable[str] = (), token: str | None = None
) -> Application:
    """Return the whole ASGI application of one server, its guard included."""
    app = FastAPI(
        title=f"attention-branch: {state.predictor.facts.name}",
        description="Predictions with the map that made them, questions about them, and corrections.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(_programs(state))
    app.include_router(interactive(state))
    app.include_router(corrections(state))
    app.include_router(page(state, app))
    app.add_exception_handler(UserError, lambda _, problem: _error(422, str(problem)))
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _does_not_fit)
    app.add_exception_handler(Exception, _failed)
    guarded = Guard(
        app,
        host=host,
        allowed_hosts=allowed_hosts,
        token=token,
        limits=state.limits,
        refused=lambda status: state.metrics.refused.labels(str(status)).inc(),
    )
    return Measured(guarded, state.metrics)


def _programs(state: State) -> APIRouter:
    router = APIRouter(tags=["for programs"])

    @router.get("/healthz", summary="Whether the server answers")
    async def healthz() -> dict[str, str]:
        if not state.compute.alive:
            raise HTTPException(503, "The thread that runs the network has ended; start the server again.")
        return {"status": "ok"}

    @router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/v1/model", summary="The network: classes, preprocessing, versions, methods")
    async def model() -> JSONResponse:
        limits = state.limits
        return JSONResponse(
            state.predictor.facts.to_dict()
            | {"limits": {"body_bytes": limits.body, "pixels": limits.pixels, "images": limits.images}}
        )

    @router.post(
        "/v1/predict",
        summary="Pictures in, probabilities and maps out",
        response_model=PredictReply,
        responses=_ERRORS,  # type: ignore[arg-type]
        openapi_extra=_FILES,
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000, description="Classes listed by name.")] = 5,
        maps: Annotated[Literal["none", "array", "png"], Query(description="Form of the attention maps.")] = "none",
        record: Annotated[bool, Query(description="Also say what it takes to get the answer again.")] = True,
    ) -> Response:
        files = await uploads(request, state.limits)
        facts = state.predictor.facts

        async def one(name: str, content: bytes) -> dict[str, object]:
            try:
                upload = await state.decode(content, name)
            except UserError as problem:
                return {"file": name, "error": str(problem)}
            answer = await asyncio.wrap_future(state.compute.predict(upload.array))
            return prediction(facts, upload, answer, top=top, maps=maps, record=record)

        tasks = [asyncio.ensure_future(one(name, content)) for name, content in files]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            # One image that finds the line full refuses the request; the others must not go on for nobody.
            for task in tasks:
                task.cancel()
        if all("error" in result for result in results):
            raise HTTPException(422, str(results[0]["error"]))
        try:
            return JSONResponse({"results": results})
        except ValueError:  # A number that JSON cannot say: rare, and looking at each one first costs every answer.
            return JSONResponse(finite({"results": results}))

    return router


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"status": status, "message": message}}, status, headers=headers)


def _busy(_request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Busy)
    return _error(503, f"{problem.why} Come again in {problem.retry} s.", {"Retry-After": str(problem.retry)})


def _http_error(_request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, HTTPException)
    return _error(problem.status_code, str(problem.detail), dict(problem.headers or {}))


def _does_not_fit(_request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"][-2:])
    return _error(422, f"{where}: {first['msg']}.")


def _failed(request: Request, problem: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=problem)
    return _error(500, "The server failed at this request; its log says why.")
