"""What only a GPU shows: a whole training step captured in a CUDA graph, and the gradients there."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def twins(width: int) -> tuple[Any, Any]:
    original = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).cuda()
    return mg.convert(copy.deepcopy(original)), original


@pytest.mark.parametrize("width", [8, 256], ids=["dense", "factored"])
def test_a_captured_step_trains_as_the_original_does(width: int) -> None:
    ours, theirs = twins(width)
    loss = mg.QuadraticLoss()
    batches = [(torch.randn(4, width, device="cuda"), torch.randn(4, width, device="cuda")) for _ in range(6)]
    x, y = (t.clone() for t in batches[0])
    optimizer = mg.GradientDescent(ours.parameters(), lr=0.1)
    start = copy.deepcopy(ours.state_dict())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(ours(x), y).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up, as PyTorch advises
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    ours.load_state_dict(start)  # in place: the graph holds these very weights
    theirs.load_state_dict(start)

    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for given, target in batches:
        x.copy_(given)
        y.copy_(target)
        graph.replay()
        sgd.zero_grad()
        loss(theirs(given), target).backward()
        sgd.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def test_reduce_overhead_mode() -> None:
    """torch.compile's own CUDA graphs."""
    ours, theirs = twins(64)
    compiled = torch.compile(ours, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 64, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(compiled(x).square().sum(), list(ours.parameters()))
        expected = torch.autograd.grad(theirs(x).square().sum(), list(theirs.parameters()))
        torch.testing.assert_close([g.clone() for g in found], list(expected), rtol=1e-3, atol=1e-4)


def test_check_backward_runs_its_row_on_the_gpu() -> None:
    report = mg.check_backward(mg.Dense(4, 3), nn.Linear(4, 3), torch.randn(5, 4), skip=["torch.compile"])
    report.assert_ok(require=("cuda",))
