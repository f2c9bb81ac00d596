"""Values of options that commands share."""

import pytest

from bench.terminal.options import models_of


@pytest.mark.parametrize(
    ("models", "depths", "named"),
    [
        (None, None, None),
        (("resnet34",), None, ("resnet34",)),
        (None, ("resnet18", "resnet50"), ("resnet18", "resnet50")),
        (("resnet50", "resnet34"), ("resnet18", "resnet50"), ("resnet50", "resnet34", "resnet18")),
    ],
)
def test_models_and_depths_name_each_model_once(
    models: tuple[str, ...] | None, depths: tuple[str, ...] | None, named: tuple[str, ...] | None
) -> None:
    """Twice, the kernel bench would count a model's layers twice."""
    assert models_of(models, depths) == named
