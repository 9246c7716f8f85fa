"""Several models, a part of the processes, half precision, an early end: the weights of one process, the same bits."""

from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.other_cases import CASES, run_all
from tests.distributed.processes import in_processes


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    return in_processes(3, run_all)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_one_process(case: str, outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome[case], dict), outcome[case]
        assert outcome[case]["difference"] < outcome[case].get("tolerance", 1e-12)
    assert len({outcome[case]["bits"] for outcome in outcomes}) == 1


def test_half_precision_factors_travel_as_they_are(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["bfloat16 under autocast"]["seen"] == {"factored", "torch.bfloat16"}


def test_an_early_end_is_the_same_in_all_processes(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["an early end"]["taken"] == 4
        assert "exhausted" in outcome["an early end"]["said"]
