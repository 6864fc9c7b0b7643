"""The gradient of every example's own loss: its squared norm, exactly, at little more than a forward and backward pass.

One pass over the batch is listened to (`taps`), which gives what every example adds to the batch's gradient. If the
loss decouples, that is 1/n of the gradient of the example's own loss, or all of it where losses are summed: it is
compared on two examples taken alone. If they differ, either the loss couples the examples or not all was heard. Then
the gradient of the two together is compared with the mean (or sum) of the single ones, and if these agree, all
examples are taken one by one. So whether a loss decouples is found out by number, and what is given is exact.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normscope.errors import DeviceError, InvalidModel, NormscopeError
from normscope.model.batch import Batch, count_examples, parts_of, take
from normscope.model.loss import (
    IGNORED_LABEL,
    LossFn,
    checked_loss,
    default_loss,
    gradients_by,
    one_number,
    readable_errors,
)
from normscope.model.state import Saved
from normscope.model.vector_norm import Gradient, norm_of_each, wide
from normscope.per_example.dropout import WithoutDropout
from normscope.per_example.layout import Layout, layout_of
from normscope.per_example.taps import Key, Taps

SMALL_SHARE = 1e-3
"""A parameter with less than this share of a gradient's norm is compared with the whole, not with itself."""


@dataclass(frozen=True)
class PerExample:
    """The gradients ∇ℓ_b of the examples' own losses, if the loss of the batch is the mean, or the sum, of them."""

    decouples: bool
    error: float
    """How far two examples are from that, relative to their gradients' norm: the parameter with the largest distance
    where a pass was listened to, the whole gradient otherwise. NaN where nothing is finite and other than zero; inf
    where the loss cannot be computed on a single example."""
    is_random: bool
    """Whether the loss draws random numbers; the test is made without dropout."""
    is_sum: bool = False
    """Whether losses are summed, not averaged."""
    in_one_pass: bool = False
    """False where the examples were taken one by one."""
    squared_norms: Tensor | None = None
    """(parameters, examples) in float64; None where the loss does not decouple."""
    mean: Gradient | None = None
    """Their mean over the examples; None where the loss does not decouple."""


def per_example(model: nn.Module, batch: Batch, loss_fn: LossFn | None, *, start: Saved, seed: int = 0) -> PerExample:
    """Squared norms of the gradients of all examples, parameter by parameter, and the mean gradient.

    The model is used in the mode it is in, and each pass begins at `start`, what `untouched` saved: call it inside
    that. An operation on parameters that is not in `operations.OPERATIONS` makes it take the examples one by one.

    Raises:
        InvalidBatch: fewer than two examples, or a batch whose examples cannot be told apart.
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    passes = _Passes(model, batch, loss_fn, start, seed)
    if not passes.take_two_alone():
        return PerExample(False, float("inf"), passes.is_random)
    return passes.listen() or passes.take_one_by_one()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a gradient is taken by."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Gradient:
    """∇ℓ of a loss of one number."""
    if not parameters:
        raise InvalidModel("there is no trainable parameter")
    return _filled(gradients_by(one_number(loss), parameters), parameters)


def tolerance(parameters: list[nn.Parameter]) -> float:
    """How far two gradients that should be the same may be apart, relative to their norm: the square root of the
    coarsest precision they are computed in, which leaves a deep network room to amplify rounding."""
    eps = max((torch.finfo(parameter.dtype).eps for parameter in parameters), default=0.0)
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    if on_gpu and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
        eps = max(eps, 2.0**-10)
    return eps**0.5


class _Passes:
    """The passes over a batch, and what they found."""

    def __init__(self, model: nn.Module, batch: Batch, loss_fn: LossFn | None, start: Saved, seed: int) -> None:
        self._model, self._batch, self._loss_fn, self._start, self._seed = model, batch, loss_fn, start, seed
        self._size, self._chosen = count_examples(batch, at_least=2), _two_unlike(batch)
        self._two = take(batch, self._chosen)
        self._parameters = trainable(model)
        self._limit = tolerance(self._parameters)
        self._singles: list[Gradient] = []
        self._keys: list[Key] = []
        self._inputs: list[Tensor] = []
        self.is_random = False

    def take_two_alone(self) -> bool:
        """Take two examples alone, and note the operations on parameters of the first. False where the loss cannot be
        computed on one example, but can on two."""
        torch.manual_seed(self._seed)
        before, quiet = torch.get_rng_state(), WithoutDropout()
        with quiet:
            try:
                for i in self._chosen:
                    with nullcontext() if self._singles else Taps(self._parameters, self._note, 1):
                        loss = self._loss_alone(i)
                    self._singles.append(gradient(loss, self._parameters))
            except DeviceError:
                raise
            except (RuntimeError, NormscopeError):
                with torch.no_grad():
                    self._loss(self._two)  # raises where a single example is not all that is wrong
        self.is_random = quiet.met or not torch.equal(before, torch.get_rng_state())
        if len(self._singles) < 2:
            return False
        self._norms = torch.stack([norm_of_each(single) for single in self._singles], 1)
        return True

    def listen(self) -> PerExample | None:
        """One pass over the whole batch; None where that does not do, or what it gives for the two examples is
        wrong."""
        noted = {index for _, *indices in self._keys for index in indices}
        if any(i not in noted and bool(norm != 0) for i, norm in enumerate(self._norms[:, 0])):
            return None
        error, is_sum = 0.0, False
        if self.is_random:  # the masks are not those of the single passes: the test is made without dropout
            with WithoutDropout():
                heard = self._heard(self._two, 2, 0)
            if heard is None:
                return None
            error, is_sum = self._distance_of_norms(heard[0].sqrt(), 2)
            if error > self._limit:
                return None
        torch.manual_seed(self._seed)
        heard = self._heard(self._batch, self._size, self._chosen[0])
        if heard is None:
            return None
        squares, sums = heard
        if not self.is_random:
            error, is_sum = self._distance_of_norms(squares[:, self._chosen].sqrt(), self._size)
        if error > self._limit:
            return None
        scale = 1 if is_sum else self._size
        mean = [each * (scale / self._size) for each in sums]
        return PerExample(True, error, self.is_random, is_sum, True, squares * scale**2, mean)

    def take_one_by_one(self) -> PerExample:
        """The gradient of the two examples together against the single ones; where it decouples, all of the batch
        so."""
        with WithoutDropout():
            together = gradient(self._loss(self._two), self._parameters)
        total = [first + second for first, second in zip(*self._singles, strict=True)]
        error, is_sum = _distance(together, total, self._norms)
        if error > self._limit:
            return PerExample(False, error, self.is_random)
        torch.manual_seed(self._seed)
        together = gradient(self._loss(self._batch), self._parameters)
        squares, total = [], [torch.zeros_like(each) for each in together]
        for i in range(self._size):
            single = gradient(self._loss_alone(i), self._parameters)
            squares.append(norm_of_each(single).square())
            total = [so_far + part for so_far, part in zip(total, single, strict=True)]
        squared_norms = torch.stack(squares, 1)
        if not self.is_random:
            error, sums_too = _distance(together, total, squared_norms.sqrt())
            if error > self._limit or sums_too != is_sum:
                return PerExample(False, error, False)
        return PerExample(True, error, self.is_random, is_sum, False, squared_norms, [t / self._size for t in total])

    def _loss(self, batch: Batch) -> Tensor:
        with self._start.one_pass(draws_on=True):
            return checked_loss(self._model, batch, self._loss_fn)

    def _loss_alone(self, example: int) -> Tensor:
        with self._start.one_pass(draws_on=True), readable_errors():
            return (self._loss_fn or default_loss)(self._model, take(self._batch, [example]))

    def _note(self, key: Key, x: Tensor) -> None:
        self._keys.append(key)
        # What follows may change it in place. Where the first dimension is 1, only the shape can be asked for.
        self._inputs.append(x.detach().clone() if x.ndim and x.shape[0] > 1 else x.new_empty(x.shape, device="meta"))

    def _heard(self, batch: Batch, size: int, place: int) -> tuple[Tensor, Gradient] | None:
        """Squared norms (parameters, examples) of what each example adds to the gradient, and the gradient; None where
        not all that concerns the parameters was heard, or not what was noted of the example at `place`."""
        expected = iter(zip(self._keys, self._inputs, strict=True))
        as_expected = True

        def layout(key: Key, x: Tensor) -> Layout | None:
            nonlocal as_expected
            known, one = next(expected, (None, None))
            found = layout_of(one, x, size, place) if one is not None and known == key else None
            as_expected = as_expected and found is not None
            return found if as_expected else None

        taps = Taps(self._parameters, layout, size)
        try:
            with taps:
                loss = self._loss(batch)
            left = gradients_by(loss, self._parameters)
            taps.finish()
        except (torch.OutOfMemoryError, DeviceError):
            raise
        except (RuntimeError, NormscopeError):
            return None  # the forward pass did before, so listening is what fails here
        if not as_expected or next(expected, None) is not None or any(each is not None for each in left):
            return None
        nothing = torch.zeros(size, dtype=torch.float64, device=loss.device)
        squares = [taps.squared_norms.get(i, nothing) for i in range(len(self._parameters))]
        return torch.stack(squares), _filled(list(map(taps.sums.get, range(len(left)))), self._parameters)

    def _distance_of_norms(self, parts: Tensor, size: int) -> tuple[float, bool]:
        """How far what the two examples add to a gradient, of norms `parts` (parameters, 2), is from their own
        gradients over the number of examples, or from these themselves where that is nearer; and which."""
        norms, finite = self._norms, self._norms.isfinite()
        whole = torch.linalg.vector_norm(torch.where(finite, norms, 0.0), dim=0)
        unit = torch.maximum(norms, SMALL_SHARE * whole)
        distances = []
        for scale in (size, 1):
            apart = (parts * scale - norms).abs() / unit
            apart = torch.where(finite, apart, torch.where(parts.isfinite(), torch.inf, torch.nan))
            apart = apart[~apart.isnan()]
            distances.append(float(apart.max()) if len(apart) else float("nan"))
        return (distances[1], True) if distances[1] < distances[0] else (distances[0], False)


def _two_unlike(batch: Batch) -> list[int]:
    """Two examples as unlike as can be seen from outside: with the fewest and the most labels to be ignored, or else
    the first and the middle one."""
    size = count_examples(batch, at_least=2)
    for part in parts_of(batch):
        if isinstance(part, Tensor) and not part.is_floating_point() and part.ndim and len(part) == size:
            ignored = (part == IGNORED_LABEL).flatten(1).sum(1) if part.ndim > 1 else (part == IGNORED_LABEL).long()
            if int(ignored.min()) < int(ignored.max()):
                return [int(ignored.argmin()), int(ignored.argmax())]
    return [0, size // 2]


def _distance(together: Gradient, total: Gradient, norms: Tensor) -> tuple[float, bool]:
    """How far a batch's gradient is from the mean of its examples' gradients, or from their sum where that is nearer,
    and which; from the sum of these and their norms (parameters, examples)."""
    examples = norms.shape[1]
    unit = torch.linalg.vector_norm(norms, dim=0).mean()
    off_mean = [part - of_all / examples for part, of_all in zip(together, total, strict=True)]
    off_sum = [part - of_all for part, of_all in zip(together, total, strict=True)]
    from_mean, from_sum = (float(norm_of_each(off).norm() / unit) for off in (off_mean, off_sum))
    from_sum /= examples
    return (from_sum, True) if from_sum < from_mean else (from_mean, False)


def _filled(tensors: list[Tensor | None] | tuple[Tensor | None, ...], parameters: list[nn.Parameter]) -> Gradient:
    pairs = zip(tensors, parameters, strict=True)
    return [torch.zeros_like(p, dtype=wide(p.dtype)) if t is None else t.to(wide(p.dtype)) for t, p in pairs]
