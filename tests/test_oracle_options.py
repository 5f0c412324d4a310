"""Oracles that one thread calls at a time, and oracles whose every answer is verified, wherever they are used."""

import functools
import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cvxpy as cp
import numba
import numpy as np
import pytest
import torch
from systems import needs_fork

import optlayers as ol
import polytopes
from optlayers.solvers import pool
from optlayers.testing import check_oracle, check_rule


def drawn(count, size=5, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choice(oracle, membership=None, size=5):
    """One part, which only auxiliary variables say: projections go over the oracle."""
    x, hidden = cp.Variable(size), cp.Variable(size, nonneg=True)
    return ol.Polytope(x, [x == hidden, cp.sum(hidden) == 1], oracle=oracle, membership=membership)


class Model:
    """What stands for the model of a solver: it sees when a second thread comes in."""

    def __init__(self):
        self.inside = self.most = self.calls = 0
        self.lock = threading.Lock()

    def best(self, scores):
        self._work()
        x = np.zeros(len(scores))
        x[np.argmax(scores)] = 1.0
        return x

    def missing(self, x):
        self._work()
        return abs(x.sum() - 1.0)

    def _work(self):
        with self.lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(1e-4)
        with self.lock:
            self.inside -= 1


def use(layer):
    scores = drawn(12).requires_grad_()
    layer(scores).square().sum().backward()
    return scores.grad


def shared(model, serial):
    """Layers and compiled polytopes that all ask the same model, in every way that there is."""

    def oracle():
        return ol.Oracle(model.best, serial=serial)

    declared, plain = choice(oracle(), model.missing), choice(model.best, model.missing)
    return [
        ol.OptLayer(declared, ol.SparseMAP()),
        ol.OptLayer(declared, ol.Spigot()),
        ol.OptLayer(choice(oracle()), ol.Pipeline(), projector=ol.ActiveSet(iteration_limit=50)),
        ol.OptLayer(plain, ol.SparseMAP(), maximizer=oracle()),
        ol.OptLayer(plain, ol.SparseMAP(), maximizer=oracle(), projector=ol.ActiveSet()),
        ol.OptLayer(choice(ol.Oracle(functools.partial(model.best), serial=serial)), ol.Spigot()),
        ol.OptLayer(ol.Family(lambda size: choice(oracle(), model.missing, size)), ol.SparseMAP()),
    ]


@pytest.mark.parametrize("serial", [False, True])
def test_one_thread_at_a_time(serial):
    """Of batches, of users, of several layers: a model that is not declared serial sees threads meet."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model = Model()
    try:
        layers = shared(model, serial)

        def work(layer):
            scores = drawn(12).requires_grad_()
            sizes = {} if layer.family is None else {"sizes": [5, 4, 3] * 4}
            layer(scores, **sizes).square().sum().backward()
            return scores.grad

        expected = [work(layer) for layer in layers]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, layers * 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 2, strict=True))
    assert model.calls > 1000 and (model.most == 1) == serial


@pytest.mark.parametrize(("worth", "threads"), [(0.01, 2), (10.0, 1)])
def test_a_thread_is_woken_for_work_that_is_worth_it(worth, threads, monkeypatch):
    monkeypatch.setattr(pool, "HANDED_OVER", worth)
    before, seen, done = torch.get_num_threads(), set(), []
    torch.set_num_threads(2)

    def work(which):
        time.sleep(0.002 * len(which))
        seen.add(threading.get_ident())
        done.extend(which.tolist())

    try:
        pace = pool.Pace()
        for _ in range(2):
            pace.spread(work, 40)
    finally:
        torch.set_num_threads(before)
    assert len(seen) == threads
    assert sorted(done) == sorted([*range(40), *range(40)])


def test_a_batch_of_a_serial_oracle_stays_in_the_thread_of_its_user():
    threads = set()

    def best(scores):
        threads.add(threading.get_ident())
        return np.eye(5)[scores.argmax()]

    compiled = ol.compile_polytope(choice(ol.Oracle(best, serial=True)))
    compiled.tangent(compiled.project(drawn(300)).check(), drawn(300))
    compiled.maximize(drawn(300)).check()
    assert threads == {threading.get_ident()}


def test_an_oracle_may_ask_the_layer_that_it_belongs_to():
    asked = []

    def best(scores):
        if not asked:
            asked.append("from within")
            asked.append(compiled.project(drawn(200)).check())
            ol.OptLayer(polytopes.arborescence(3), ol.SparseMAP())(torch.zeros(200, 4, 4))
        return np.eye(5)[scores.argmax()]

    compiled = ol.compile_polytope(choice(ol.Oracle(best, serial=True)))
    worker = threading.Thread(target=lambda: asked.append(compiled.project(drawn(40))), daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive() and len(asked) == 3 and asked[2].all_ok


def test_an_oracle_of_numba_may_be_serial():
    @numba.njit
    def best(scores):
        x = np.zeros(len(scores))
        x[np.argmax(scores)] = 1.0
        return x

    serial, free = (ol.compile_polytope(choice(ol.Oracle(best, serial=s))) for s in (True, False))
    assert torch.equal(serial.project(drawn(9)).check().value, free.project(drawn(9)).check().value)
    constants = ol.CompiledOracle(best_of, [np.arange(5)])
    found = ol.compile_polytope(choice(ol.Oracle(constants, serial=True))).maximize(drawn(9)).check()
    assert torch.equal(found.value, free.maximize(drawn(9)).value)


@numba.njit
def best_of(scores, places):
    x = np.zeros(len(scores))
    x[places[np.argmax(scores[places])]] = 1.0
    return x


def best_choice(scores):
    return np.eye(5)[scores.argmax()]


def _in_a_child(layer, answers):
    answers.put(layer(drawn(4)).sum().item())


@needs_fork
def test_a_forked_child_does_not_wait_for_a_turn_of_its_parent():
    started, go_on = threading.Event(), threading.Event()

    def slow(scores):
        if scores[0] == 77.0:
            started.set()
            go_on.wait(60)
        return best_choice(scores)

    layer = ol.OptLayer(choice(ol.Oracle(slow, serial=True)), ol.Pipeline())
    holding = drawn(1)
    holding[0, 0] = 77.0
    worker = threading.Thread(target=layer, args=(holding,))
    worker.start()
    try:
        assert started.wait(60)
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=_in_a_child, args=(layer, answers))
        child.start()
        assert answers.get(timeout=60) == 4.0
        child.join(60)
    finally:
        go_on.set()
        worker.join(60)


def test_options_are_values():
    oracle = ol.Oracle(ol.Oracle(best_choice, serial=True), verify=True)
    assert oracle == ol.Oracle(best_choice, verify=True, serial=True) and hash(oracle) is not None
    assert oracle(np.array([0.0, 2.0, 1.0, 0.0, 0.0])).argmax() == 1 and oracle.__name__ == "best_choice"
    layer = ol.OptLayer(choice(ol.Oracle(best_choice, serial=True)), ol.SparseMAP())
    assert torch.equal(pickle.loads(pickle.dumps(layer))(drawn(3)), layer(drawn(3)))
    check_oracle(choice(oracle))
    check_rule(ol.Spigot(), choice(ol.Oracle(best_choice, serial=True)))
    for arguments, message in (
        ({"function": 3}, "must be callable, but got int"),
        ({"function": best_choice, "verify": 1}, "verify must be True or False, but got 1"),
        ({"function": best_choice, "serial": "yes"}, "serial must be True or False, but got 'yes'"),
    ):
        with pytest.raises(TypeError, match=message):
            ol.Oracle(**arguments)


def lazy(scores):
    """Never takes the last part."""
    return np.eye(5)[scores[:4].argmax()]


def beyond(scores):
    """Leaves the polytope where auxiliary variables alone show it."""
    return 2.0 * np.eye(5)[scores.argmax()] - np.eye(5)[scores.argmin()]


def late(scores):
    """Right for scores with one large entry, so that it is found out on the way of a projection alone."""
    ordered = np.sort(scores)
    return np.eye(5)[scores.argmax()] if ordered[-1] - ordered[-2] > 0.2 else lazy(scores)


VERIFIED = {
    "declared": lambda f: {"polytope": choice(ol.Oracle(f, verify=True))},
    "declared, serial": lambda f: {"polytope": choice(ol.Oracle(f, verify=True, serial=True))},
    "maximizer": lambda f: {"polytope": choice(f), "maximizer": ol.Oracle(f, verify=True)},
    "maximizer beside a projector": lambda f: {
        "polytope": choice(f),
        "maximizer": ol.Oracle(f, verify=True),
        "projector": ol.ActiveSet(),
    },
    "projector": lambda f: {"polytope": choice(f), "projector": ol.ActiveSet(function=ol.Oracle(f, verify=True))},
    "declared, projector": lambda f: {"polytope": choice(ol.Oracle(f, verify=True)), "projector": ol.ActiveSet()},
}


@pytest.mark.many(3)
@pytest.mark.parametrize("way", VERIFIED)
@pytest.mark.parametrize("oracle", [best_choice, lazy, beyond, late], ids=lambda f: f.__name__)
def test_no_wrong_projection_over_a_verified_oracle_is_called_right(oracle, way):
    given = VERIFIED[way](oracle)
    compiled = ol.compile_polytope(given.pop("polytope"), **given)
    scores = drawn(40)
    expected = ol.compile_polytope(choice(None)).project(scores).check().value
    found = compiled.project(scores)
    wrong = (found.value - expected).abs().amax(1) > 1e-6
    assert not (wrong & found.ok).any() and bool(wrong.any()) == (oracle is not best_choice)
    assert found.ok.sum() >= 5 or oracle is beyond
    for failure in found.failures:
        assert failure.reason.startswith(f"oracle {oracle.__name__} ")
        assert any(what in failure.reason for what in ("misses the best value by", "left the polytope", "not maximize"))
    assert (found.gap[found.ok] >= -1e-9).all() and found.vertices.shape[0] == 40
    direction = drawn(40, seed=1)
    tangent = compiled.tangent(found, direction)
    rows = ol.compile_polytope(choice(None))
    right = rows.tangent(rows.project(scores), direction)
    if oracle is best_choice:
        assert (tangent.scores - right.scores).abs().max() <= 1e-9


def test_a_verified_oracle_in_a_layer_and_with_forbidden_parts():
    tree = polytopes.arborescence(4)
    verified = ol.OptLayer(tree, ol.SparseMAP(), maximizer=ol.Oracle(tree.oracle, verify=True))
    plain = ol.OptLayer(tree, ol.SparseMAP())
    scores = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[1, 0, 1:3] = -torch.inf
    results = []
    for layer in (verified, plain):
        leaf = scores.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        results.append(leaf.grad)
    assert torch.equal(*results)
    chain = polytopes.linear_chain(3, 2)
    compiled = ol.compile_polytope(chain, maximizer=ol.Oracle(chain.oracle, verify=True), projector=ol.ActiveSet())
    transition = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = compiled.project(drawn(5, 6).reshape(5, 3, 2), transition=transition).check()
    expected = ol.compile_polytope(chain.without_oracle()).project(drawn(5, 6).reshape(5, 3, 2), transition=transition)
    assert (found.value - expected.value).abs().max() <= 1e-9


def test_one_oracle_answers_for_vertices_and_for_projections():
    """Another one than the declaration's, given as the maximizer, is the one of projections too."""
    other = ol.compile_polytope(choice(lazy), maximizer=ol.Oracle(best_choice))
    expected = ol.compile_polytope(choice(None)).project(drawn(20)).check().value
    assert (other.project(drawn(20)).check().value - expected).abs().max() <= 1e-9
    assert ol.compile_polytope(choice(best_choice)).projector == ol.ActiveSet()
