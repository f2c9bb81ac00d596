"""The backward pass of a bottleneck block, from its end to its input: see `kernels.bottleneck.forward`.

It computes only what is needed: no gradients of frozen filters, nor anything that would lead only to such gradients.
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
    needs_grad: list[bool],
) -> list[Tensor]:
    """Return the gradients of x, of each of the filters, then of the weights, then of the biases; [0] if not needed."""
    require_products(x)
    number = len(filters)
    needs_x, *parameter_needs = needs_grad
    backward = _Backward(
        dout=channels_last(dout),
        x=channels_last(x),
        filters=filters,
        multiplied=[tensor.to(x.dtype) for tensor in filters],
        norms=norms_of(weights, biases, eps),
        kept=Kept(*kept),
        geometry=Geometry(first_stride, projection_stride, stride, padding, dilation, groups),
        needs_x=needs_x,
        needs=[tuple(parameter_needs[place::number]) for place in range(number)],
    )
    dx = backward.run()
    by_place = [backward.gradients.get(place, (None,) * 3) for place in range(number)]
    by_kind = [gradient for kind in zip(*by_place, strict=True) for gradient in kind]
    return [present(gradient, dout) for gradient in (dx, *by_kind)]


differentiable_once(bottleneck_backward)


@dataclass(kw_only=True)
class _Backward:
    """One backward pass; a place is one of CONV1 to PROJECTION."""

    dout: Tensor
    x: Tensor
    filters: list[Tensor]  # in their own precision
    multiplied: list[Tensor]  # the same in the precision of x
    norms: list[Norm]
    kept: Kept
    geometry: Geometry
    needs_x: bool
    needs: list[tuple[bool, ...]]  # for each place: filters, weight and bias
    gradients: dict[int, tuple[Tensor | None, ...]] = field(default_factory=dict)  # likewise; None where not needed

    def run(self) -> Tensor | None:
        """Return the gradient of x, if needed; store those of the parameters in `gradients`."""
        below = self.needs_x or any(self.needs[CONV1])  # before conv2 in the block
        source = Source(x=self.kept.x2, stride=1, line=self.kept.line, moments=self.kept.moments)
        sums, terms = self._end(CONV3, source, self.kept.varied, self.kept.statistics3, None)
        dz = None
        if len(self.filters) > PROJECTION and (self.needs_x or any(self.needs[PROJECTION])):
            dz = self._projection(sums)
        if not (below or any(self.needs[CONV2])):
            return None
        inner = inner_filters(terms, self.multiplied[CONV3].contiguous(), summed=True)
        statistics, norm = self.kept.statistics2, self.norms[CONV2]
        args = (self.dout, self.kept.mask, source, *inner)
        g2, partials = inner_gradient(*args, statistics=statistics, eps=norm.eps)
        assert partials is not None  # noqa: S101 - the source has a line
        gradients = bn_gradient(g2, self.kept.x2, None, norm, None, statistics, None, partials, activation="none")
        dx1 = self._middle(gradients.x, gradients.weight, gradients.bias, below=below)
        return None if dx1 is None else self._input(dx1, dz)

    def _end(
        self, place: int, source: Source, varied: Tensor, statistics: Tensor, sums: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the parameters' gradients of a 1x1 convolution whose result is never written.

        Returns the sums of D in parts, which both such convolutions of a block share and which are computed if they are
        not given; and the terms for `inner_filters`.
        """
        norm, filters = self.norms[place], self.multiplied[place].contiguous()
        products, new_sums = filter_gradient(
            self.dout,
            self.kept.mask,
            source.x,
            source.stride,
            line=source.line,
            centre=source.centre,
            with_sums=sums is None,
        )
        sums = new_sums if sums is None else sums
        assert sums is not None  # noqa: S101 - with_sums
        parameters = (self.filters[place], norm.weight, norm.bias)
        pairs = zip(parameters, self.needs[place], strict=True)
        differentiated = [parameter if needed else None for parameter, needed in pairs]
        *gradients, terms = parameter_gradients(
            products, sums, source, filters, varied, statistics, norm, differentiated
        )
        self.gradients[place] = tuple(gradients)
        return sums, terms

    def _projection(self, sums: Tensor) -> Tensor | None:
        """Return the gradient of the pixels that the projection takes, if that of x is needed."""
        kept, stride = self.kept, self.geometry.projection_stride
        source = Source(x=self.x, stride=stride, line=None, moments=kept.z_moments)
        _, terms = self._end(PROJECTION, source, kept.z_varied, kept.statistics4, sums)
        if not self.needs_x:
            return None
        inner = inner_filters(terms, self.multiplied[PROJECTION].contiguous(), summed=False)
        dz, _ = inner_gradient(self.dout, kept.mask, source, *inner)
        return dz

    def _middle(self, dx2: Tensor, dweight: Tensor | None, dbias: Tensor | None, *, below: bool) -> Tensor | None:
        """Go back through conv2, and through the ReLU and bn1 if `below`; dweight and dbias are those of bn2."""
        needs_filters, *needs_norm = self.needs[CONV2]
        dy1, dfilters = None, None
        if below or needs_filters:
            dy1, dfilters = self._convolution(dx2, below=below, needs_filters=needs_filters)
        pairs = zip((dweight, dbias), needs_norm, strict=True)
        self.gradients[CONV2] = (dfilters, *(gradient if needed else None for gradient, needed in pairs))
        if dy1 is None:
            return None
        norm, statistics = self.norms[CONV1], self.kept.statistics1
        gradients = bn_backward(
            dy1, self.kept.x1, None, norm, None, statistics, None, training=True, activation="from x"
        )
        self.gradients[CONV1] = (None, gradients.weight, gradients.bias)
        return gradients.x

    def _convolution(self, dx2: Tensor, *, below: bool, needs_filters: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of conv2's input and filters, by cuDNN; recompute its input if it was not saved."""
        y1 = self.kept.y1
        if y1.numel() == 0:
            mean, var = self.kept.statistics1.unbind()
            norm = self.norms[CONV1]._replace(running_mean=mean, running_var=var)
            y1, _, _ = bn_act_forward(self.kept.x1, None, norm, None, training=False, relu=True)
        _, _, stride, padding, dilation, groups = self.geometry
        filters, mask = self.multiplied[CONV2], [below, needs_filters, False]
        dy1, dfilters, _ = torch.ops.aten.convolution_backward(
            dx2, y1, filters, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        return dy1, dfilters.to(self.filters[CONV2].dtype) if needs_filters else None

    def _input(self, dx1: Tensor, dz: Tensor | None) -> Tensor | None:
        """Go back through conv1 and the shortcut; return the gradient of x, if needed."""
        stride, projection_stride, *_ = self.geometry
        needs_filters, *needs_norm = self.needs[CONV1]
        _, *norm_gradients = self.gradients[CONV1]
        dfilters = None
        if needs_filters:
            dfilters = merged_filter_gradient(dx1, self.x, stride, self.filters[CONV1].contiguous())
        pairs = zip(norm_gradients, needs_norm, strict=True)
        self.gradients[CONV1] = (dfilters, *(gradient if needed else None for gradient, needed in pairs))
        if not self.needs_x:
            return None
        filters = self.multiplied[CONV1].contiguous()
        if dz is None:
            return input_gradient(dx1, filters, self.x, stride, self.dout, self.kept.mask)
        return input_gradient(dx1, filters, self.x, stride, dz, None, projection_stride)
