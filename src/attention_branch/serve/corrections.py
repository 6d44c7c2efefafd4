"""The routes of what a person says: annotations that are saved, and the queue of pictures to go through."""

import asyncio
import base64
import binascii
from functools import partial
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

from attention_branch import __version__
from attention_branch.annotations import (
    Annotation,
    annotation_names,
    annotation_record,
    delete_annotation,
    from_view,
    read_annotation,
    to_view,
    write_annotation,
)
from attention_branch.errors import UserError
from attention_branch.explanations.overlay import overlay
from attention_branch.serve.cases import Case
from attention_branch.serve.gallery import Gallery
from attention_branch.serve.predictor import SINGLE, Answer, Facts
from attention_branch.serve.records import answers, finite, now
from attention_branch.serve.schemas import AnnotationRequest, OpenRequest, QueueState
from attention_branch.serve.state import State, read_json
from attention_branch.serve.uploads import png_bytes, read_picture

_MOST_MAP_PIXELS = 4096 * 4096


def corrections(state: State) -> APIRouter:
    """Return the routes of annotations and of the queue."""
    router = APIRouter(tags=["corrections"])
    facts = state.predictor.facts

    @router.post("/v1/images/{key}/annotation", summary="Save a person's map of an open image", status_code=201)
    async def annotate(key: str, request: Request) -> JSONResponse:
        case = state.case(key)
        wanted = await read_json(request, AnnotationRequest)
        head = facts.head(wanted.head) if wanted.head is not None and facts.multitask else None
        label = _label(facts, wanted.label)
        drawn = await state.on_saver(partial(_drawn, wanted.map))
        after = None
        if facts.question is None:
            maps = _on_grid(case.opened.answer, facts, head, drawn)
            logits = await asyncio.wrap_future(state.compute.run(lambda: case.opened.ask(maps)))
            after = _without_probabilities(answers(facts, logits, None, 3))
        done = await state.on_saver(partial(_save, state, case, wanted, drawn, label, head, after))
        return JSONResponse(finite({"name": done.name, **done.record}), 201)

    @router.get("/v1/annotations", summary="The saved annotations")
    async def listed() -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(_listed, state))

    @router.get("/v1/annotations/{name}", summary="One annotation's JSON file")
    async def one(name: str) -> JSONResponse:
        return JSONResponse((await asyncio.to_thread(_found, state, name)).record)

    @router.get("/v1/annotations/{name}/map.png", summary="Its map", response_class=FileResponse)
    async def map_file(name: str) -> FileResponse:
        return FileResponse((await asyncio.to_thread(_found, state, name)).map, media_type="image/png")

    @router.get("/v1/annotations/{name}/view.png", summary="Its map, brought to what the network sees")
    async def map_view(name: str) -> Response:
        def view() -> bytes:
            content = _found(state, name).map.read_bytes()
            drawn = read_picture(content, f"the map of {name}", facts.preprocessing, state.limits)
            return png_bytes(facts.preprocessing.image(drawn).convert("L"))

        return Response(await state.on_decoder(view), media_type="image/png")

    @router.get("/v1/annotations/{name}/overlay.png", summary="Its map over its picture, for a list")
    async def map_overlay(name: str) -> Response:
        def drawn() -> bytes:
            found = _found(state, name)
            whole = read_picture(found.image.read_bytes(), name, facts.preprocessing, state.limits)
            values = to_view(found.values(), facts.preprocessing)
            shown = overlay(facts.preprocessing.image(whole), values, side=160)
            shown.thumbnail((320, 320))
            return png_bytes(shown)

        return Response(await state.on_decoder(drawn), media_type="image/png")

    @router.delete("/v1/annotations/{name}", summary="Remove one annotation", status_code=204)
    async def remove(name: str) -> Response:
        _known(state, name)
        await state.on_saver(partial(delete_annotation, state.annotations, name))
        return Response(status_code=204)

    @router.get("/v1/queue", summary="The pictures to go through, the worst or the most uncertain first")
    async def queue(
        order: Annotated[str, Query(description="worst, uncertain or name")] = "worst",
        state_: Annotated[str, Query(alias="state", description="todo, wrong, annotated, skipped or all")] = "todo",
        class_: Annotated[str | None, Query(alias="class", description="Label or prediction.")] = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 40,
    ) -> JSONResponse:
        gallery = _gallery(state)
        annotated = await asyncio.to_thread(_digests, state)
        page = partial(gallery.listed, annotated, order=order, state=state_, wanted=class_, offset=offset, limit=limit)
        return JSONResponse(finite(await asyncio.to_thread(page)))

    @router.get("/v1/queue/{index}/thumbnail.png", summary="A small picture of one of them")
    async def thumbnail(index: int) -> Response:
        def small() -> bytes:
            content, name = _gallery(state).content(index)
            picture = read_picture(content, name, facts.preprocessing, state.limits)
            picture.thumbnail((160, 160))
            return png_bytes(picture)

        return Response(await state.on_decoder(small), media_type="image/png")

    @router.put("/v1/queue/{index}", summary="Pass a picture over, or take it back", status_code=204)
    async def mark(index: int, request: Request) -> Response:
        wanted = await read_json(request, QueueState)
        await asyncio.to_thread(_gallery(state).set_skipped, index, wanted.state == "skipped")
        return Response(status_code=204)

    return router


def stored(state: State, wanted: OpenRequest) -> tuple[bytes, str, dict[str, str] | None, dict[str, Any] | None]:
    """Return the bytes, the name and the label of a picture that the server has, and what was saved with it."""
    if (wanted.queue is None) == (wanted.annotation is None):
        raise UserError("Name one picture: 'queue' with its number, or 'annotation' with its name.")
    if wanted.annotation is not None:
        found = _found(state, wanted.annotation)
        label = {SINGLE: found.label} if isinstance(found.label, str) else found.label
        saved = {"name": found.name, "head": found.head}
        saved |= {key: found.record.get(key) for key in ("note", "shapes")}
        return found.image.read_bytes(), str(found.record.get("source") or found.image.name), label, saved
    assert wanted.queue is not None
    gallery = _gallery(state)
    content, source = gallery.content(wanted.queue)
    return content, source, gallery.pictures.labels(wanted.queue), None


def _gallery(state: State) -> Gallery:
    if state.gallery is None:
        raise HTTPException(404, "This server has no queue of pictures; start it with --images or --data.")
    return state.gallery


def _found(state: State, name: str) -> Annotation:
    """Return an annotation by name; only names that are listed exist, whatever a path may say."""
    _known(state, name)
    return read_annotation(state.annotations, name)


def _known(state: State, name: str) -> None:
    if name not in annotation_names(state.annotations):
        raise HTTPException(404, "There is no such annotation.")


def _listed(state: State) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for name in annotation_names(state.annotations):
        try:
            record = annotation_record(state.annotations, name)
        except UserError as problem:
            found.append({"name": name, "error": str(problem)})
            continue
        kept = {key: record.get(key) for key in ("label", "head", "source", "time", "image_sha256", "note")}
        found.append({"name": name, **kept})
    return {"folder": str(state.annotations), "annotations": found}


def _digests(state: State) -> set[str]:
    """Return the starts of the SHA-256s of the annotated images, as their names hold them."""
    return {name[:16] for name in annotation_names(state.annotations)}


def _save(
    state: State,
    case: Case,
    wanted: AnnotationRequest,
    drawn: np.ndarray,
    label: str | dict[str, str] | None,
    head: str | None,
    after: dict[str, Any] | None,
) -> Annotation:
    facts, answer = state.predictor.facts, case.opened.answer
    values = from_view(drawn, facts.preprocessing, (case.upload.height, case.upload.width))
    record = {
        "source": case.source or case.upload.name,
        "shapes": wanted.shapes,
        "note": wanted.note,
        "model": {"source": facts.source, "name": facts.name, "weights_sha256": facts.weights_sha256},
        "before": _without_probabilities(answers(facts, answer.logits, answer.attention_logits, 3)),
        "after": after,
        "tool": f"abn serve {__version__}",
        "time": now(),
    }
    return write_annotation(
        state.annotations, case.upload.content, values, label=label, head=head, record=finite(record)
    )


def _on_grid(answer: Answer, facts: Facts, head: str | None, drawn: np.ndarray) -> np.ndarray:
    """Return the maps (T, h, w) to ask with for a map that was saved: averaged over the cells of the network's own."""
    assert answer.attention is not None
    maps = np.array(answer.attention, dtype=np.float32)
    height, width = maps.shape[1:]
    full = facts.map_range[1] if facts.map_range is not None else float(maps.max())
    levels = Image.fromarray(drawn.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    chosen = slice(None) if head is None or len(maps) == 1 else list(facts.classes).index(head)
    maps[chosen] = full * np.asarray(levels)
    return maps


def _without_probabilities(said: dict[str, Any]) -> dict[str, Any]:
    if "heads" in said:
        return {"heads": {head: _without_probabilities(part) for head, part in said["heads"].items()}}
    return {key: value for key, value in said.items() if key != "probabilities"}


def _label(facts: Facts, label: str | dict[str, str] | None) -> str | dict[str, str] | None:
    """Check a label against the classes; `UserError` for one that the network does not have."""
    if label is None or label == {}:
        return None
    given = {SINGLE: label} if isinstance(label, str) else dict(label)
    if facts.multitask and isinstance(label, str):
        raise UserError("This network has several heads; give the label by head.")
    checked = {}
    for head, name in given.items():
        chosen = facts.head(head)
        index = facts.class_index(chosen, name)
        if index is None:
            continue
        checked[chosen] = facts.classes[chosen][index]
    return checked if facts.multitask else next(iter(checked.values()), None)


def _drawn(text: str) -> np.ndarray:
    """Return a drawn map (h, w) in [0, 1] from a base64 PNG, with or without the prefix of a data address."""
    try:
        content = base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as problem:
        raise UserError("The map is not base64; send an 8-bit grey PNG as base64 text.") from problem
    try:
        picture = Image.open(BytesIO(content), formats=["PNG"])
        if picture.width * picture.height > _MOST_MAP_PIXELS:
            raise UserError(f"The map has {picture.width}x{picture.height} pixels; 4096x4096 are enough.")
        return np.asarray(picture.convert("L"), dtype=np.float64) / 255
    except UserError:
        raise
    except Exception as problem:  # Pillow's decoders meet hostile bytes with any exception there is.
        raise UserError("The map is no PNG that can be read; send an 8-bit grey PNG as base64 text.") from problem
