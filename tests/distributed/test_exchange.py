"""Processes that exchange factors come to the weights of one process with all of the batches, and to the same bits."""

from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.cases import CASES, run_all
from tests.distributed.processes import in_processes


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request: Any) -> list[dict[str, Any]]:
    return in_processes(request.param, run_all, list(CASES))


def check(case: str, outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome[case], dict), outcome[case]
        assert outcome[case]["difference"] < 1e-12
    assert len({outcome[case]["bits"] for outcome in outcomes}) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_one_process(case: str, outcomes: list[dict[str, Any]]) -> None:
    check(case, outcomes)


def test_four_processes() -> None:
    names = ["uneven rows and none", "too many rows in one process", "accumulating without no_sync"]
    outcomes = in_processes(4, run_all, names)
    for name in names:
        check(name, outcomes)


def test_factors_are_what_the_optimizer_sees(outcomes: list[dict[str, Any]]) -> None:
    seen = {name: set.union(*(o[name]["seen"] for o in outcomes)) for name in CASES}
    assert seen["even"] == seen["uneven rows and none"] == seen["accumulating in no_sync"] == {"factored"}
    assert seen["accumulating without no_sync"] == seen["checkpointing"] == seen["static graph"] == {"factored"}
    assert "dense" in seen["uneven rows, all-reduced"]  # not where only one process has rows: factors cost less memory
    assert seen["layers unused in all processes"] == {"factored", "none"}
