"""The check of what copying does to a module."""

import copy
import pickle
import re

from torch import nn

from manualgrad.conformance.case import Case, outputs
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.result import Failed, NotApplicable, NotSupported
from manualgrad.dry_run import in_brief


def copies(case: Case) -> str:
    """deepcopy and pickle of a module."""
    layer = case.original
    if not isinstance(layer, nn.Module):
        raise NotApplicable("not a module")
    expected = outputs(case.layer, case.leaves())
    for name, made in (("deepcopy", copy.deepcopy), ("pickle", lambda module: pickle.loads(pickle.dumps(module)))):
        try:
            twin = made(layer)
        except Exception as error:
            if name == "pickle" and re.search("local object|<lambda>|<locals>", str(error)):
                raise NotSupported(in_brief(error)) from error  # pickle's words for what has no name to be found by
            raise Failed(f"{name}: {in_brief(error)}", f"import copy, pickle; {_LINES[name]}") from error
        case_of_twin = Case(twin, case.reference.subject, case.given)
        expect_equal(
            [f"the {name}'s output"] * len(expected),
            outputs(case_of_twin.layer, case_of_twin.leaves()),
            expected,
            line=f"import copy, pickle; {_LINES[name]}",
        )
    return "deepcopy, pickle"


_LINES = {
    "deepcopy": "print(copy.deepcopy(layer)(*inputs) - layer(*inputs))",
    "pickle": "print(pickle.loads(pickle.dumps(layer))(*inputs) - layer(*inputs))",
}
