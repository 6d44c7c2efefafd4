"""Hostile requests against the server: each is refused with 4xx and a sentence, and the server goes on."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from attention_branch.data.images import open_image
from attention_branch.errors import UserError
from attention_branch.serve.uploads import Limits
from serving import Server, encoded, picture, saved_model

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
hostile_uploads = importlib.import_module("hostile_uploads")
sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    saved_model(folder / "model")
    made = Server(folder / "model", folder / "annotations", limits=Limits(body=2**20))
    yield made
    made.close()


def readable(request):
    """Tell whether the one file of a form is a picture after all, by Pillow."""
    content = request.body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--XabnX--", 1)[0]
    try:
        open_image(content)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("kind", range(len(hostile_uploads.KINDS)), ids=[k.__name__ for k in hostile_uploads.KINDS])
def test_hostile_requests_are_refused_with_a_sentence(server, kind):
    statuses = Counter()
    for turn in range(12):
        request = hostile_uploads.hostile(turn * len(hostile_uploads.KINDS) + kind)
        reply = server.client.request(request.method, request.path, headers=request.headers, content=request.body)
        statuses[reply.status_code] += 1
        good = not request.never_good and readable(request)
        assert reply.status_code == 200 if good else 400 <= reply.status_code < 500, request.path
        if not good:
            assert reply.json()["error"]["message"]
            assert "Traceback" not in reply.text
    assert sum(statuses.values()) == 12
    assert server.send(encoded(picture())).status_code == 200
