"""The routes behind the page: an image is opened once, then looked at, questioned and traced."""

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from attention_branch.errors import UserError
from attention_branch.serve.cases import Case
from attention_branch.serve.corrections import stored
from attention_branch.serve.predictor import Answer, ByHead, Facts, probabilities
from attention_branch.serve.reading import reading
from attention_branch.serve.records import answers, finite, map_array, map_facts, maps_by_head, now, trace
from attention_branch.serve.schemas import OpenRequest, Question
from attention_branch.serve.state import State, read_json, uploads
from attention_branch.serve.uploads import png_bytes

_LONGEST_HISTORY = 500


def interactive(state: State) -> APIRouter:
    """Return the routes under /v1/images."""
    router = APIRouter(prefix="/v1/images", tags=["one image, looked at and questioned"])
    facts = state.predictor.facts

    @router.post("", summary="Open an image: a picture (form or body), or one that the server has (JSON)")
    async def open_image(request: Request) -> JSONResponse:
        if request.headers.get("content-type", "").startswith("application/json"):
            wanted = await read_json(request, OpenRequest)
            content, source, label, saved = await asyncio.to_thread(stored, state, wanted)
            name = source.rpartition("/")[2]
        else:
            files = await uploads(request, state.limits)
            if len(files) != 1:
                raise UserError(f"{len(files)} files were sent; open one at a time.")
            (name, content), source, label, saved = files[0], None, None, None
        upload = await state.decode(content, name)
        opened = await asyncio.wrap_future(state.compute.run(lambda: state.predictor.open(upload.array)))
        case = state.cases.add(upload, opened, label, source)
        return JSONResponse(finite(_described(facts, case) | ({"saved": saved} if saved else {})), 201)

    @router.get("/{key}", summary="An open image's answer")
    async def image(key: str) -> JSONResponse:
        return JSONResponse(finite(_described(facts, state.case(key))))

    @router.get("/{key}/view.png", summary="What the network sees of the picture", response_class=Response)
    async def view(key: str) -> Response:
        return Response(png_bytes(state.case(key).upload.view), media_type="image/png")

    @router.get("/{key}/map", summary="The map of a method, for any class")
    async def explained(
        key: str,
        method: Annotated[str, Query(description="One of /v1/model's methods.")] = "attention",
        target: Annotated[str | None, Query(description="Class by name or number; the predicted one if left out.")] = (
            None
        ),
        index: Annotated[int | None, Query(ge=0, description="Class by number, whatever the names are.")] = None,
        head: Annotated[str | None, Query(description="Head of a network with several; the first if left out.")] = None,
    ) -> JSONResponse:
        case = state.case(key)
        if method not in facts.methods:
            raise UserError(f"'{method}' does not work for this network; choose one of {', '.join(facts.methods)}.")
        chosen = facts.head(head)
        if index is None:
            index = facts.class_index(chosen, target)
        elif target is not None or index >= len(facts.classes[chosen]):
            raise UserError(
                "Give target or index, not both." if target is not None
                else f"There is no class {index}; the last one is {len(facts.classes[chosen]) - 1}."
            )  # fmt: skip
        wanted = (method, chosen, index)
        if wanted not in case.maps:
            found = await asyncio.wrap_future(state.compute.run(lambda: case.opened.explain(method, chosen, index)))
            if len(case.maps) > 64:
                case.maps.clear()
            case.maps[wanted] = found
        found = case.maps[wanted]
        shown = index if index is not None else int(probabilities(case.opened.answer.logits[chosen]).argmax())
        return JSONResponse(
            finite(
                map_facts(found.values, found.value_range, chosen if facts.multitask else None)
                | {
                    "method": method,
                    "layer": found.layer,
                    "class_agnostic": found.class_agnostic,
                    "target": None if found.class_agnostic else {"class": facts.classes[chosen][shown], "index": shown},
                    "values": map_array(found.values),
                }
            )
        )

    @router.get("/{key}/reading", summary="The answer in plain words")
    async def words(
        key: str, head: Annotated[str | None, Query(description="Head of a network with several.")] = None
    ) -> JSONResponse:
        case, chosen = state.case(key), facts.head(head)
        without = await asyncio.wrap_future(state.compute.run(lambda: case.opened.without_highest(chosen)))
        return JSONResponse({"sentences": reading(facts, case.opened.answer, chosen, without)})

    @router.post("/{key}/answer", summary="Answer with maps of one's own; only what lies behind the gate runs")
    async def ask(key: str, request: Request) -> JSONResponse:
        case = state.case(key)
        question = await read_json(request, Question)
        if facts.question is not None:
            raise UserError(facts.question)
        maps = _given(facts, case.opened.answer, question.maps)
        logits = await asyncio.wrap_future(state.compute.run(lambda: case.opened.ask(maps)))
        said = answers(facts, logits, None, question.top)
        _remember(case, maps, logits, facts)
        return JSONResponse(finite(said))

    @router.get("/{key}/record", summary="What it takes to get this answer again, for keeping")
    async def record(key: str) -> Response:
        case = state.case(key)
        name = case.upload.name.rpartition(".")[0] or case.upload.name
        clean = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
        return JSONResponse(
            finite(full_record(facts, case)),
            headers={"content-disposition": f'attachment; filename="{clean}.json"'},
        )

    return router


def full_record(facts: Facts, case: Case) -> dict[str, Any]:
    """Return an open image's whole record: the answer, its maps, what was asked since, and their origin."""
    answer = case.opened.answer
    return {
        "file": case.upload.name,
        "source": case.source,
        "label": case.label,
        "width": case.upload.width,
        "height": case.upload.height,
        **answers(facts, answer.logits, answer.attention_logits, 5),
        "maps": [
            map_facts(values, facts.map_range, head) | {"method": "attention", "values": map_array(values)}
            for head, values in maps_by_head(facts, answer)
        ],
        "asked": case.asked,
        **trace(facts, case.upload),
    }


def _described(facts: Facts, case: Case) -> dict[str, Any]:
    height, width = facts.preprocessing.size
    return full_record(facts, case) | {"id": case.id, "view": {"height": height, "width": width}}


def _given(facts: Facts, answer: Answer, given: dict[str, list[list[float]]]) -> np.ndarray:
    """Return the maps (T, h, w) to answer with: the network's own, with those that were given in their places."""
    assert answer.attention is not None
    maps = np.array(answer.attention, dtype=np.float32)
    heads = list(facts.classes)
    for name, rows in given.items():
        place = heads.index(facts.head(name)) if len(maps) > 1 else 0
        if len(maps) == 1 and name != "label":
            facts.head(name)
        if len(rows) != maps.shape[1] or any(len(row) != maps.shape[2] for row in rows):
            raise UserError(f"A map must have {maps.shape[1]} rows of {maps.shape[2]} numbers.")
        values = np.array(rows, dtype=np.float64)
        low, high = facts.map_range if facts.map_range is not None else (0.0, 1e6)
        if not (np.isfinite(values).all() and values.min() >= low and values.max() <= high):
            raise UserError(f"The map has values outside of {low:g} to {high:g}.")
        maps[place] = values
    return maps


def _remember(case: Case, maps: np.ndarray, logits: ByHead, facts: Facts) -> None:
    """Note what was asked, so far back as is useful: a stroke is one entry."""
    del case.asked[: max(0, len(case.asked) + 1 - _LONGEST_HISTORY)]
    said = answers(facts, logits, None, 1)
    heads = {head: part["prediction"] for head, part in said["heads"].items()} if facts.multitask else None
    case.asked.append(
        {
            "time": now(),
            "mean_of_map": [round(float(values.mean()), 6) for values in maps],
            **({"heads": heads} if heads else {"prediction": said["prediction"]}),
        }
    )
