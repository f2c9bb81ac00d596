"""The backward pass of a bottleneck block, from its end to its input: see `kernels.bottleneck.forward`.

What nobody wants is not computed: the gradient of a frozen filter, and whatever would only lead to frozen ones.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.batch_norm.act import bn_act_forward
from kernels.batch_norm.backward import bn_backward, bn_gradient
from kernels.bottleneck.parts import CONV1, CONV2, CONV3, PROJECTION, Geometry, Kept, channels_last, norms_of
from kernels.gram.backward import inner_filters, parameter_gradients
from kernels.gram.covariance import Source
from kernels.gram.inner_gradient import inner_gradient
from kernels.kernel import Norm
from kernels.launch.autograd import differentiable_once, present
from kernels.launch.runtime import triton_op
from kernels.products.filter_gradient import filter_gradient, merged_filter_gradient
from kernels.products.input_gradient import input_gradient
from kernels.products.plans import require_products


@triton_op("resbench::bottleneck_backward", opaque=True)
def bottleneck_backward(
    dout: Tensor,
    x: Tensor,
    filters: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    kept: list[Tensor],
    eps: list[float],
    first_stride: int,
    projection_stride: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of x, of each of the filters, then of the weights, then of the biases; [0] where not wanted."""
    require_products(x)
    number = len(filters)
    wants_x, *of_parameters = wanted
    backward = _Backward(
        dout=channels_last(dout),
        x=channels_last(x),
        filters=filters,
        multiplied=[of.to(x.dtype) for of in filters],
        norms=norms_of(weights, biases, eps),
        kept=Kept(*kept),
        geometry=Geometry(first_stride, projection_stride, stride, padding, dilation, groups),
        wants_x=wants_x,
        wants=[tuple(of_parameters[place::number]) for place in range(number)],
    )
    dx = backward.run()
    found = [backward.found.get(place, (None,) * 3) for place in range(number)]
    of_parameters_found = [of for kind in zip(*found, strict=True) for of in kind]
    return [present(gradient, dout) for gradient in (dx, *of_parameters_found)]


differentiable_once(bottleneck_backward)


@dataclass(kw_only=True)
class _Backward:
    """One backward pass. A place is one of CONV1 to PROJECTION."""

    dout: Tensor
    x: Tensor
    filters: list[Tensor]  # as they are given,
    multiplied: list[Tensor]  # and in the precision of x
    norms: list[Norm]
    kept: Kept
    geometry: Geometry
    wants_x: bool
    wants: list[tuple[bool, ...]]  # of each place its filters, weight and bias
    found: dict[int, tuple[Tensor | None, ...]] = field(default_factory=dict)  # their gradients, those that are wanted

    def run(self) -> Tensor | None:
        """The gradient of x, if wanted; those of the parameters are noted."""
        below = self.wants_x or any(self.wants[CONV1])  # of bn2
        source = Source(x=self.kept.x2, stride=1, line=self.kept.line, moments=self.kept.moments)
        sums, terms = self._end(CONV3, source, self.kept.varied, self.kept.statistics3, None)
        dz = None
        if len(self.filters) > PROJECTION and (self.wants_x or any(self.wants[PROJECTION])):
            dz = self._projection(sums)
        if not (below or any(self.wants[CONV2])):
            return None
        inner = inner_filters(terms, self.multiplied[CONV3].contiguous(), summed=True)
        statistics, norm = self.kept.statistics2, self.norms[CONV2]
        args = (self.dout, self.kept.mask, source, *inner)
        g2, partials = inner_gradient(*args, statistics=statistics, eps=norm.eps)
        assert partials is not None  # noqa: S101 - the source has a line
        found = bn_gradient(g2, self.kept.x2, None, norm, None, statistics, None, partials, activation="none")
        dx1 = self._middle(found.x, found.weight, found.bias, below=below)
        return None if dx1 is None else self._input(dx1, dz)

    def _end(
        self, place: int, source: Source, varied: Tensor, statistics: Tensor, sums: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The parameters of a 1x1 convolution whose result does not exist.

        Returns sums of D in parts, which are the same for both of a block's and taken where they are not given; and
        the terms for what is behind it.
        """
        norm, filters = self.norms[place], self.multiplied[place].contiguous()
        products, taken = filter_gradient(
            self.dout,
            self.kept.mask,
            source.x,
            source.stride,
            line=source.line,
            centre=source.centre,
            with_sums=sums is None,
        )
        sums = taken if sums is None else sums
        assert sums is not None  # noqa: S101 - asked for
        parameters = (self.filters[place], norm.weight, norm.bias)
        wanted = [of if wants else None for of, wants in zip(parameters, self.wants[place], strict=True)]
        *found, terms = parameter_gradients(products, sums, source, filters, varied, statistics, norm, wanted)
        self.found[place] = tuple(found)
        return sums, terms

    def _projection(self, sums: Tensor) -> Tensor | None:
        """Of the pixels that the projection takes, if the gradient of x is wanted."""
        kept, stride = self.kept, self.geometry.projection_stride
        source = Source(x=self.x, stride=stride, line=None, moments=kept.z_moments)
        _, terms = self._end(PROJECTION, source, kept.z_varied, kept.statistics4, sums)
        if not self.wants_x:
            return None
        inner = inner_filters(terms, self.multiplied[PROJECTION].contiguous(), summed=False)
        dz, _ = inner_gradient(self.dout, kept.mask, source, *inner)
        return dz

    def _middle(self, dx2: Tensor, dweight: Tensor | None, dbias: Tensor | None, *, below: bool) -> Tensor | None:
        """Through conv2, the ReLU and bn1, if anything below is wanted. dweight and dbias: of bn2."""
        wants_filters, *wants_norm = self.wants[CONV2]
        dy1, dfilters = None, None
        if below or wants_filters:
            dy1, dfilters = self._convolution(dx2, below=below, wants_filters=wants_filters)
        of_norm = (of if wants else None for of, wants in zip((dweight, dbias), wants_norm, strict=True))
        self.found[CONV2] = (dfilters, *of_norm)
        if dy1 is None:
            return None
        norm, statistics = self.norms[CONV1], self.kept.statistics1
        found = bn_backward(dy1, self.kept.x1, None, norm, None, statistics, None, training=True, activation="from x")
        self.found[CONV1] = (None, found.weight, found.bias)
        return found.x

    def _convolution(self, dx2: Tensor, *, below: bool, wants_filters: bool) -> tuple[Tensor | None, Tensor | None]:
        """Through conv2 by cuDNN: the gradients of what it took, which is made again where it was not kept."""
        y1 = self.kept.y1
        if y1.numel() == 0:
            mean, var = self.kept.statistics1.unbind()
            known = self.norms[CONV1]._replace(running_mean=mean, running_var=var)
            y1, _, _ = bn_act_forward(self.kept.x1, None, known, None, training=False, relu=True)
        _, _, stride, padding, dilation, groups = self.geometry
        filters, mask = self.multiplied[CONV2], [below, wants_filters, False]
        dy1, dfilters, _ = torch.ops.aten.convolution_backward(
            dx2, y1, filters, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        return dy1, dfilters.to(self.filters[CONV2].dtype) if wants_filters else None

    def _input(self, dx1: Tensor, dz: Tensor | None) -> Tensor | None:
        """Through conv1, and the shortcut."""
        stride, projection_stride, *_ = self.geometry
        wants_filters, *wants_norm = self.wants[CONV1]
        _, *of_norm = self.found[CONV1]
        dfilters = None
        if wants_filters:
            dfilters = merged_filter_gradient(dx1, self.x, stride, self.filters[CONV1].contiguous())
        wanted = (of if wants else None for of, wants in zip(of_norm, wants_norm, strict=True))
        self.found[CONV1] = (dfilters, *wanted)
        if not self.wants_x:
            return None
        filters = self.multiplied[CONV1].contiguous()
        if dz is None:
            return input_gradient(dx1, filters, self.x, stride, self.dout, self.kept.mask)
        return input_gradient(dx1, filters, self.x, stride, dz, None, projection_stride)
