"""The line before the network: who goes first, what goes together, and what is refused."""

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from attention_branch.serve.compute import BACKGROUND, Busy, Compute
from attention_branch.serve.predictor import Answer


def image(number):
    return np.full((1, 1, 1), number, dtype=np.float32)


class Network:
    """Answers each image with its own number, and notes the batches; holds until it is let go."""

    def __init__(self, held=False):
        self.batches, self.go = [], threading.Event()
        self.entered = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, images):
        self.entered.set()
        assert self.go.wait(10)
        self.batches.append(images[:, 0, 0, 0].tolist())
        return [Answer({"label": values.ravel()}, None, None) for values in images]


@pytest.fixture
def made():
    kept = []

    def make(network, **options):
        kept.append(Compute(network, **options))
        return kept[-1]

    yield make
    for compute in kept:
        compute.close()


def test_every_image_gets_its_own_answer_and_batches_grow_with_the_line(made):
    network = Network(held=True)
    compute = made(network, largest=4)
    first = compute.predict(image(0))
    assert network.entered.wait(10)
    rest = [compute.predict(image(number)) for number in range(1, 10)]
    network.go.set()
    assert [future.result(10).logits["label"][0] for future in [first, *rest]] == list(range(10))
    assert [len(batch) for batch in network.batches] == [1, 4, 4, 1]


def test_a_persons_question_overtakes_programs_and_those_overtake_the_background(made):
    network = Network(held=True)
    compute = made(network, largest=1)
    order = []
    compute.predict(image(0))
    assert network.entered.wait(10)
    late = compute.run(lambda: order.append("background"), priority=BACKGROUND)
    program = compute.predict(image(1))
    program.add_done_callback(lambda _: order.append("program"))
    person = compute.run(lambda: order.append("person"))
    network.go.set()
    wait([late, program, person], timeout=10)
    assert order == ["person", "program", "background"]


def test_a_full_line_refuses_at_once_and_says_when_to_come_again(made):
    network = Network(held=True)
    compute = made(network, waiting=3)
    kept = [compute.predict(image(0))]
    assert network.entered.wait(10)
    kept += [compute.predict(image(number)) for number in range(3)]
    with pytest.raises(Busy) as refused:
        compute.predict(image(9))
    assert 1 <= refused.value.retry <= 30
    network.go.set()
    assert len(wait(kept, timeout=10).done) == 4


def test_what_stood_too_long_in_line_is_refused_and_not_computed(made):
    network = Network(held=True)
    compute = made(network, patience=0.2)
    first = compute.predict(image(0))
    assert network.entered.wait(10)
    second = compute.predict(image(1))
    time.sleep(0.3)
    network.go.set()
    assert first.result(10).logits["label"][0] == 0
    with pytest.raises(Busy):
        second.result(10)
    assert network.batches == [[0.0]]


def test_images_whose_client_went_away_are_not_computed(made):
    network = Network(held=True)
    compute = made(network)
    compute.predict(image(0))
    assert network.entered.wait(10)
    gone, kept = compute.predict(image(1)), compute.predict(image(2))
    assert gone.cancel()
    network.go.set()
    kept.result(10)
    assert network.batches == [[0.0], [2.0]]


def test_programs_are_refused_in_time_though_people_ask_all_the_while(made):
    compute = made(Network(), patience=0.3)
    stop = threading.Event()

    def asks():
        while not stop.is_set():
            compute.run(lambda: time.sleep(0.02)).result(10)

    people = [threading.Thread(target=asks) for _ in range(3)]
    for person in people:
        person.start()
    begun = time.monotonic()
    try:
        compute.predict(image(1)).result(5)
    except Busy:
        pass
    finally:
        took = time.monotonic() - begun
        stop.set()
        for person in people:
            person.join(10)
    assert took < 3


def test_programs_that_fill_the_line_do_not_shut_people_out(made):
    network = Network(held=True)
    compute = made(network, waiting=2)
    compute.predict(image(0))
    assert network.entered.wait(10)
    kept = [compute.predict(image(number)) for number in range(2)]
    with pytest.raises(Busy):
        compute.predict(image(3))
    asked = compute.run(lambda: 7)
    network.go.set()
    assert asked.result(10) == 7
    assert len(wait(kept, timeout=10).done) == 2


def test_a_network_that_answers_too_few_images_fails_them_and_the_thread_goes_on(made):
    compute = made(lambda images: [])
    with pytest.raises(RuntimeError):
        compute.predict(image(0)).result(10)
    assert compute.alive
    assert compute.run(lambda: 1).result(10) == 1


def test_a_failing_batch_fails_its_images_and_nothing_else(made):
    def fails(images):
        if images.max() > 5:
            raise ValueError("too large")
        return [Answer({"label": values.ravel()}, None, None) for values in images]

    compute = made(fails)
    with pytest.raises(ValueError, match="too large"):
        compute.predict(image(9)).result(10)
    with pytest.raises(ZeroDivisionError):
        compute.run(lambda: 1 // 0).result(10)
    assert compute.predict(image(1)).result(10).logits["label"][0] == 1


def test_closing_finishes_what_runs_and_refuses_the_rest():
    network = Network(held=True)
    compute = Compute(network)
    first = compute.predict(image(0))
    assert network.entered.wait(10)
    second = compute.predict(image(1))
    closing = threading.Thread(target=compute.close)
    closing.start()
    with pytest.raises(Busy):
        second.result(10)
    network.go.set()
    closing.join(10)
    assert first.result(0).logits["label"][0] == 0
    with pytest.raises(Busy):
        compute.predict(image(2))


class Lanes:
    """A network whose calls wait for each other where there are to be several; it notes batches and who was beside."""

    def __init__(self, seconds=0.03):
        self.seconds, self.calls, self.now, self.most = seconds, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, images, *, beside=False):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.calls.append((len(images), beside))
        time.sleep(self.seconds * len(images))
        with self.lock:
            self.now -= 1
        return [Answer({"label": values.ravel()}, None, None) for values in images]


def test_a_slow_network_computes_in_lanes_under_load_and_alone_on_everything(made):
    network = Lanes()
    compute = made(network, lanes=3, largest=16)
    assert compute.predict(image(7)).result(10).logits["label"][0] == 7
    assert network.calls == [(1, False)]
    answers = [compute.predict(image(number)) for number in range(40)]
    assert [future.result(20).logits["label"][0] for future in answers] == list(range(40))
    assert network.most == 3
    assert sum(beside for _, beside in network.calls) > len(network.calls) / 2
    time.sleep(0.1)
    compute.predict(image(1)).result(10)
    assert network.calls[-1] == (1, False)


def test_a_fast_network_keeps_one_lane_and_large_batches(made):
    network = Lanes(seconds=0.0001)
    compute = made(network, lanes=3, largest=16)
    compute.predict(image(0)).result(10)
    answers = [compute.predict(image(number)) for number in range(200)]
    assert [future.result(20).logits["label"][0] for future in answers] == list(range(200))
    assert network.most == 1
    assert not any(beside for _, beside in network.calls)
    assert max(size for size, _ in network.calls) > 4


def test_one_lane_answers_people_and_the_others_go_on_with_programs(made):
    network = Lanes()
    compute = made(network, lanes=2, largest=4)
    compute.predict(image(0)).result(10)
    at_once, most, go = [0], [0], threading.Event()

    def question():
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        assert go.wait(10)
        at_once[0] -= 1

    people = [compute.run(question) for _ in range(3)]
    answers = [compute.predict(image(number)) for number in range(8)]
    assert len(wait(answers, timeout=10).done) == 8
    go.set()
    wait(people, timeout=10)
    assert most == [1]
    assert all(person.exception() is None for person in people)


def test_batches_are_observed(made):
    seen = []
    compute = made(Network(), observe=lambda images, seconds: seen.append((images, seconds >= 0)))
    compute.predict(image(0)).result(10)
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [(1, True)]
