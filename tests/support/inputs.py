"""Networks and batches as cases have them, for tests that have no case."""

from typing import cast

from torch import Tensor

from bench.measure.inputs import make_batch, make_model
from bench.parity import trajectory
from bench.types import Case, Device
from resnet.models.resnet import ResNet


def reference_model(name: str, seed: int) -> ResNet:
    """A reference ResNet in the telling random state of `make_model`."""
    model = make_model(name, seed)
    assert isinstance(model, ResNet)
    return model


def batch(batch_size: int, image_size: int, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Images and labels, as a reference ResNet takes them."""
    return make_batch(_case(batch_size, image_size, device), seed)


def batches(batch_size: int, image_size: int, *, seed: int, steps: int) -> trajectory.Batches:
    """The batches of a check on the CPU."""
    return trajectory.batches(_case(batch_size, image_size, "cpu"), seed=seed, steps=steps)


def _case(batch_size: int, image_size: int, device: str) -> Case:
    return Case(
        model="resnet18",
        mode="train",
        precision="fp32",
        batch_size=batch_size,
        image_size=image_size,
        path="eager",
        device=cast("Device", device),
    )
