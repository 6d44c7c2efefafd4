"""The page itself: its files, the colours of its maps, and the API's description as a page that needs no network."""

import json
from html import escape
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from attention_branch.explanations.overlay import COLORMAP
from attention_branch.serve.state import State

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def page(state: State, app: FastAPI) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    # Read once: a name in an address never becomes a path.
    folder = files("attention_branch.serve") / "page"
    kept = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}

    @router.get("/")
    async def start() -> Response:
        return _file(kept, "index.html")

    @router.get("/page/start.json")
    async def facts() -> JSONResponse:
        colors = matplotlib.colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3]
        return JSONResponse(
            {
                "model": state.predictor.facts.to_dict(),
                "colors": colors.tolist(),
                "queue": None if state.gallery is None else state.gallery.pictures.title,
                "annotations": str(state.annotations),
            }
        )

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        return _file(kept, name)

    @router.get("/docs")
    async def documentation() -> HTMLResponse:
        return HTMLResponse(_documentation(app.openapi()))

    return router


def _file(kept: dict[str, bytes], name: str) -> Response:
    if name not in kept:
        raise HTTPException(404, "There is no such file.")
    kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    return Response(kept[name], media_type=f"{kind}; charset=utf-8")


def _documentation(described: dict[str, Any]) -> str:
    """Return the API's description as HTML: Swagger's own page would load its program from the network."""
    parts = ""
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            parts += _route(path, method, route)
    shapes = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(shape, indent=2))}</pre></details>"
        for name, shape in described.get("components", {}).get("schemas", {}).items()
    )
    title = escape(described["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API of {title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/page/style.css"></head>'
        f'<body class="api"><main><h1>API of {title}</h1><p>{escape(described["info"]["description"])} '
        'For tools: <a href="/openapi.json">openapi.json</a>. <a href="/">The page</a>.</p>'
        f"{parts}<h2>Shapes</h2>{shapes}</main></body></html>"
    )


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(item['name'])}</code></td><td>{escape(item['in'])}</td>"
        f"<td>{escape(item.get('description', ''))}</td></tr>"
        for item in route.get("parameters", [])
    )
    table = f"<table><tr><th>parameter</th><th>in</th><th></th></tr>{rows}</table>" if rows else ""
    body = ", ".join(route.get("requestBody", {}).get("content", {}))
    said = f"<p>Body: {escape(body)}</p>" if body else ""
    answers = ", ".join(
        f"{code} {escape(str(answer.get('description', '')))}" for code, answer in route["responses"].items()
    )
    return (
        f"<section><h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(route.get('summary', ''))}</p>"
        f"{table}{said}<p class='quiet'>Answers: {answers}</p></section>"
    )
