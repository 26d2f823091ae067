"""Captured calls on a CPU: a double of CUDA's graphs computes again, on the same buffers, at each replay."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.compilation.capture import Captured, Run
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import release
from tests.helpers.models.parity import assert_same, normal
from tests.helpers.models.rerun import Rerun

WIDTH = 4


class Refusing(Rerun):
    def record(self, run: Run, pool: Any) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Wrong(Rerun):
    """Its replays give other values; of calls with gradients, only other gradients."""

    def record(self, run: Run, pool: Any) -> Captured:
        captured = super().record(run, pool)

        def replay() -> None:
            captured.replay()
            captured.outputs[-1].add_(0.5)

        return Captured(replay, captured.outputs)


class Net(nn.Module):
    """Nested arguments and outputs; `unused` takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = (nn.Linear(WIDTH, WIDTH).double() for _ in range(3))

    def forward(self, x: Tensor, maps: tuple[Tensor, ...] | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.first(x)) * scale
        for one in maps or ():
            hidden = hidden + one
        return hidden, self.last(hidden)


def nets() -> tuple[Net, Net]:
    """A net, and one of the same weights that stays as it is."""
    torch.manual_seed(0)
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    return net, plain


def captured(net: Net, **options: Any) -> tuple[GraphedCalls, Rerun, list[str]]:
    lines: list[str] = []
    capture = options.pop("capture", Rerun())
    calls = GraphedCalls(capture, lines.append, **options)
    calls.capture([net, net])
    return calls, capture, lines


def step(net: nn.Module, seed: int, rows: int = 3) -> list[Tensor]:
    """Both outputs and the gradient of an input; gradients of weights are added up."""
    x = normal(rows, WIDTH, seed=seed)
    one = normal(rows, WIDTH, seed=seed + 1).requires_grad_()
    hidden, y = net(x, (one,), scale=0.5)
    (hidden.sum() + (y * y).sum()).backward()
    assert one.grad is not None
    return [hidden.detach(), y.detach(), one.grad]


def gradients(net: Net) -> list[Tensor]:
    assert net.unused.weight.grad is None
    found = [p.grad for layer in (net.first, net.last) for p in layer.parameters()]
    return [gradient for gradient in found if gradient is not None]


def test_values_and_gradients_follow_inputs_and_weights() -> None:
    net, plain = nets()
    calls, capture, _ = captured(net)
    for seed in (1, 5, 9):
        with calls.active():
            ours = step(net, seed)
        assert_same(ours, step(plain, seed), 1e-12)
        with torch.no_grad():  # an update between two micro-steps
            for one, other in zip(net.parameters(), plain.parameters(), strict=True):
                one.add_(0.1)
                other.add_(0.1)
    assert_same(gradients(net), gradients(plain), 1e-12)
    assert (calls.count, capture.records, capture.pools) == (1, 2, 1)


def test_a_replay_overwrites_no_result_of_before() -> None:
    net, plain = nets()
    calls, _, _ = captured(net)
    inputs = [normal(2, WIDTH, seed=seed) for seed in range(3)]
    with calls.active(), torch.inference_mode():
        results = [net(x)[1] for x in inputs]
    with calls.active():
        again = [step(net, seed) for seed in range(3)]
    assert_same([y.clone() for y in results], [plain(x)[1] for x in inputs], 1e-12)
    for seed, found in enumerate(again):
        assert_same(found, step(plain, seed), 1e-12)


def test_a_second_forward_before_the_backward_runs_eagerly() -> None:
    net, plain = nets()
    calls, capture, _ = captured(net)
    x, other = normal(3, WIDTH), normal(3, WIDTH, seed=1)
    with calls.active():
        (net(x)[1] * net(other)[1]).sum().backward()
    (plain(x)[1] * plain(other)[1]).sum().backward()
    assert_same(gradients(net), gradients(plain), 1e-12)
    with calls.active():
        net(x)  # a micro-step that ends without a backward pass
    with calls.active():
        assert_same(step(net, 7), step(plain, 7), 1e-12)
    assert capture.records == 4


def test_each_shape_mode_and_adapter_has_its_own_graph() -> None:
    net, plain = nets()
    adapter = ["student"]
    calls, capture, _ = captured(net, adapter=lambda: adapter[0])
    for rows in (2, 3, 2):
        with calls.active(), torch.inference_mode():
            assert_same([net(normal(rows, WIDTH))[1]], [plain(normal(rows, WIDTH))[1]], 1e-12)
    assert calls.count == 2 and capture.pools == 1
    with calls.active(), torch.no_grad():
        net(normal(2, WIDTH))
        adapter[0] = "average"
        net(normal(2, WIDTH))
    assert calls.count == 4
    net(normal(5, WIDTH))  # outside of a micro-step
    assert calls.count == 4


def test_a_capture_leaves_parameters_and_their_hooks_alone() -> None:
    """Another graph or a hook ties a parameter to its stream, for which a capture must not wait."""
    net, plain = nets()
    calls, _, _ = captured(net)
    parameters, found = dict(net.named_parameters()), []
    for name, p in parameters.items():
        if not name.startswith("unused"):
            p.register_hook(lambda gradient, name=name: found.append(name))  # type: ignore[misc]
    with calls.active():
        assert_same(step(net, 1), step(plain, 1), 1e-12)
    assert sorted(found) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    assert {name: id(p) for name, p in net.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert_same(gradients(net), gradients(plain), 1e-12)


def test_without_training_only_calls_without_gradients_are_captured() -> None:
    net, plain = nets()
    calls, _, _ = captured(net, captures_training=False)
    with calls.active():
        assert_same(step(net, 1), step(plain, 1), 1e-12)
        assert calls.count == 0
        with torch.inference_mode():
            net(normal(2, WIDTH))
    assert calls.count == 1


def test_a_frozen_network_has_no_backward_pass() -> None:
    net, plain = nets()
    net.requires_grad_(False)
    calls, capture, _ = captured(net)
    with calls.active():
        assert_same([net(normal(2, WIDTH))[1]], [plain(normal(2, WIDTH))[1]], 1e-12)
    assert capture.records == 1


def test_moved_weights_are_captured_anew() -> None:
    net, plain = nets()
    calls, capture, lines = captured(net)
    x = normal(2, WIDTH)
    for _ in range(2):
        with calls.active(), torch.inference_mode():
            net(x)
    assert capture.records == 1
    for p in net.parameters():
        p.data = p.data.clone()
    with calls.active():
        assert_same(step(net, 3), step(plain, 3), 1e-12)
    assert calls.count == 1 and capture.records == 3
    with calls.active(), torch.inference_mode():
        assert_same([net(x)[1]], [plain(x)[1]], 1e-12)
    assert calls.count == 2 and not lines


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 1}, "train.compile=graphs: 1 sets of shapes are captured, more run eagerly"),
        (
            {"capture": Refusing()},
            "train.compile=graphs: Net cannot be captured (operation not permitted when stream is capturing) and runs "
            "eagerly",
        ),
        (
            {"capture": Wrong()},
            "train.compile=graphs: Net cannot be captured (its * are * away from those of the call as written) and "
            "runs eagerly",
        ),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_is_said_once(options: dict[str, Any], line: str) -> None:
    net, plain = nets()
    calls, _, lines = captured(net, **options)
    for rows in (2, 3, 4, 2):
        with calls.active():
            assert_same(step(net, 1, rows), step(plain, 1, rows), 1e-12)
    assert len(lines) == 1 and fnmatch(lines[0], line)
    assert_same(gradients(net), gradients(plain), 1e-12)


def test_a_released_network_runs_as_before() -> None:
    net, plain = nets()
    outer = nn.Sequential(net)
    calls, _, _ = captured(net)
    release(outer)
    assert type(net) is Net
    with calls.active(), torch.inference_mode():
        assert_same([outer(normal(2, WIDTH))[1]], [plain(normal(2, WIDTH))[1]], 1e-12)
    assert calls.count == 0
    with captured(net)[0].active():
        assert_same(step(net, 1), step(plain, 1), 1e-12)
