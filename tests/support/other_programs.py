"""Programs of a case as the harness does not make them: of another class, or of an edited model."""

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache

from bench.types import Case, Settings
from resnet.models.resnet import ResNet
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program
from tests.support.inputs import reference_model

Edit = Callable[[ResNet], object]

_made_once = lru_cache(reference_model)


def other_program(
    case: Case, settings: Settings, kind: type[Program] = Program, edit: Edit = lambda _: None
) -> Program:
    """As `bench.measure.inputs.make_program`, but of this class, and of a model that was edited first."""
    model = deepcopy(_made_once(case.model, settings.seed))
    edit(model)
    return kind(PATHS_BY_NAME[case.path], model, mode=case.mode, precision=case.precision, device=case.device)
