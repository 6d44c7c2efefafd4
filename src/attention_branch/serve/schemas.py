"""The shapes of what the API takes and gives, for its OpenAPI description."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Word = Annotated[str, Field(max_length=500)]


class Share(BaseModel):
    """A class with its probability."""

    model_config = ConfigDict(json_schema_extra={"example": {"class": "cat", "index": 0, "probability": 0.93}})

    name: str = Field(alias="class")
    index: int
    probability: float


class MapReply(BaseModel):
    """A map and the scale it has; `values` or `png` as asked for."""

    head: str | None = Field(description="The head whose map it is; null where one map serves all.")
    height: int
    width: int
    min: float
    max: float
    mean: float
    value_range: tuple[float, float] | None = Field(description="The method's own scale; null for unbounded values.")
    values: list[list[float]] | None = None
    png: str | None = Field(None, description="8-bit grey PNG over the scale, base64.")


class PredictionReply(BaseModel):
    """The answer to one image. Networks with several heads give the first five fields by head, under `heads`."""

    file: str
    width: int
    height: int
    prediction: Share
    top: list[Share]
    probabilities: list[float] = Field(description="All classes, in the order of /v1/model.")
    attention_branch: Share | None = Field(description="The attention branch's own first class.")
    branches_agree: bool | None
    maps: list[MapReply] | None = None
    image_sha256: str
    model: str
    model_sha256: str
    preprocessing: dict[str, Any]
    engine: str
    versions: dict[str, str]
    time: str


class FileError(BaseModel):
    """One image of several that could not be answered."""

    file: str
    error: str


class PredictReply(BaseModel):
    """Answers in the order of the files; a file that cannot be read has an `error` in its place."""

    results: list[PredictionReply | FileError]


class ErrorBody(BaseModel):
    """A status and one sentence."""

    status: int
    message: str


class ErrorReply(BaseModel):
    """What every refused request gets."""

    error: ErrorBody


class Question(BaseModel):
    """Maps to answer with, by head; of a network with one map, under any one head or 'label'."""

    maps: dict[Annotated[str, Field(max_length=200)], list[list[float]]] = Field(
        description="Rows of numbers in the map's range, of the map's size.",
        examples=[{"label": [[0.0, 0.5], [1.0, 0.0]]}],
    )
    top: int = Field(5, ge=1, le=1000)


class AnnotationRequest(BaseModel):
    """A person's map of an open image, to be saved."""

    map: str = Field(description="8-bit grey PNG over what the network sees, base64: 0 = not here, 255 = look here.")
    label: Word | dict[Word, Word] | None = Field(None, description="The true class, or one by head.")
    head: Word | None = Field(None, description="The head that the map is for, where each has its own.")
    shapes: list[dict[str, Any]] = Field(default_factory=list, max_length=200)
    note: str = Field("", max_length=2000)


class OpenRequest(BaseModel):
    """A picture that the server has: of the queue, by its number, or of a saved annotation, by its name."""

    queue: int | None = Field(None, ge=0, description="Its number in the queue.")
    annotation: Word | None = Field(None, description="The annotation's name.")


class QueueState(BaseModel):
    """What becomes of a picture of the queue."""

    state: Literal["todo", "skipped"]
