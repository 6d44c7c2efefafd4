"""What the server counts, for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from attention_branch.serve.guard import Application, Message, Receive, Scope, Send
from attention_branch.serve.predictor import Facts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, facts: Facts, queued: Callable[[], int], opened: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "abn_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "abn_request_seconds",
            "Time from a request's head to its answer, the upload included.",
            ["route"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
        )
        self.batches = Histogram(
            "abn_batch_images", "Images computed at once.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.computing = Counter("abn_compute_seconds", "Time spent computing batches.", registry=self.registry)
        self.refused = Counter("abn_refused", "Requests refused unread, by status.", ["status"], registry=self.registry)
        self.bad_images = Counter("abn_bad_images", "Images that could not be read.", registry=self.registry)
        for name, what, read in (
            ("abn_queued", "Images and calls that stand in line.", queued),
            ("abn_open_images", "Images kept open for the page.", opened),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)
        about = {"name": facts.name, "weights_sha256": facts.weights_sha256, "engine": facts.engine}
        Info("abn_model", "The network that answers.", registry=self.registry).info(about)

    def batch(self, images: int, seconds: float) -> None:
        """Count a computed batch."""
        self.batches.observe(images)
        self.computing.inc(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that times every request by the route that answered it."""

    def __init__(self, application: Application, metrics: Metrics) -> None:
        self.application, self.metrics = application, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on and count what came back."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.application(scope, receive, sending)
        finally:
            # A path that no route knows is a stranger's: as a label it would grow the list without end.
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)
