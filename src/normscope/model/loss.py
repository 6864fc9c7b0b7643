"""What is minimised: the loss of a model on a batch, by the batch's type, and the loss of the best constant."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.errors import DeviceError, InvalidBatch, InvalidConfig, InvalidModel, NormscopeError, one_line, raised
from normscope.model.batch import Batch, labelled_pair, num_examples, targets_permuted
from normscope.model.best_constant import best_constant_loss
from normscope.model.output import call, entry

T = TypeVar("T")

LossFn = Callable[[nn.Module, Batch], Tensor]
"""`loss_fn(model, batch)` gives the scalar that is minimised: best a mean over examples, so that
rates mean the same at any batch size."""

IGNORED_LABEL = -100
"""The label that cross-entropy leaves out (torch's own convention)."""

CROSS_ENTROPY_TOLERANCE = 1e-3
"""A loss within this share of the cross-entropy of logits and labels is taken for it: half precision rounds."""


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of `model(x)` for a pair `(x, y)` of inputs and labels; for a mapping `model(**batch).loss`.

    Logits are (examples, classes), (examples, classes, positions...) or (examples, positions, classes); computed in
    float32 where the logits have fewer bits.
    """
    if isinstance(batch, Mapping):
        loss = entry(model(**batch), "loss")
        if loss is None:
            raise InvalidBatch(
                "the model gives no `.loss` for this mapping: add its labels, or give a loss_fn(model, batch)"
            )
        return loss
    inputs, labels = labelled_pair(batch)
    return cross_entropy(model(inputs), labels)


def loss_units(batch: Batch, loss_fn: LossFn | None) -> str:
    """The unit of a loss: nat for the default cross-entropy, "1" for what a model or somebody's loss_fn gives."""
    return "nat" if loss_fn is None and not isinstance(batch, Mapping) else "1"


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, with the classes along dimension 1 or, where only that fits the labels, along the last."""
    if not isinstance(logits, Tensor):
        raise InvalidBatch(f"the model gives a {type(logits).__name__}, not logits: give a loss_fn(model, batch)")
    if logits.ndim > 2 and labels.shape == logits.shape[:-1]:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    if not labels.is_floating_point():
        labels = labels.long()  # torch takes no other integers
    return F.cross_entropy(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, labels)


def checked_loss(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Tensor:
    """The loss, with all that can be wrong with a model or a batch said in one line.

    Raises:
        InvalidModel: no trainable parameter, or a loss that does not depend on any.
        InvalidBatch: labels out of range or not integers, shapes that do not fit, one example under batch norm, a loss
            that is not one number.
        DeviceError: no memory left.
    """
    refuse_bare_loss(loss_fn)
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidModel(f"{type(model).__name__} has no trainable parameter: there is no gradient to step along")
    examples = num_examples(batch)
    if examples == 0:
        raise InvalidBatch("the batch is empty: give one with two examples or more")
    if examples == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        raise InvalidBatch(
            "a batch of one example has no batch statistics: give two or more, or put batch norm in eval mode"
        )
    with readable_errors():
        loss = (
            _checked_cross_entropy(model, batch)
            if loss_fn is None and not isinstance(batch, Mapping)
            else (loss_fn or default_loss)(model, batch)
        )
    loss = one_number(loss)
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise InvalidModel("the loss depends on no trainable parameter: is the model detached or under no_grad?")
    return loss


def one_number(loss: Any) -> Tensor:
    """A loss as a scalar; InvalidBatch where it is no tensor of one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidBatch(f"the loss is not one number but {shape}: reduce it, for example with .mean()")
    return loss.reshape(())


def gradients_by(loss: Tensor, by: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor | None]:
    """∇ℓ by each of these; None where the loss does not depend on it, or a forward pass has frozen it.

    Raises:
        InvalidBatch, DeviceError: see `readable_errors`.
    """
    asked = [tensor for tensor in by if tensor.requires_grad]
    with readable_errors():
        found = torch.autograd.grad(loss, asked, create_graph=create_graph, allow_unused=True) if asked else ()
    of_each = dict(zip(asked, found, strict=True))
    return [of_each.get(tensor) for tensor in by]


def refuse_bare_loss(loss_fn: Any) -> None:
    """Raise InvalidConfig for a loss of outputs and targets in the place of one of model and batch."""
    is_module = isinstance(loss_fn, nn.modules.loss._Loss)
    if is_module or (callable(loss_fn) and getattr(loss_fn, "__module__", None) == F.__name__):
        name = type(loss_fn).__name__ if is_module else getattr(loss_fn, "__name__", "it")
        raise InvalidConfig(
            f"loss_fn takes the model and the batch, {name} outputs and targets: give "
            "lambda model, batch: loss(model(batch[0]), batch[1])"
        )


def loss_value(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Tensor:
    """The loss alone, a float64 scalar without a graph."""
    return without_graph(lambda: (loss_fn or default_loss)(model, batch).detach().double().reshape(()))


def without_graph(passed: Callable[[], T]) -> T:
    """What a forward pass gives that needs no gradients; made once more with them where the loss differentiates inside
    itself, as a gradient penalty does."""
    random = torch.get_rng_state()
    try:
        with torch.no_grad():
            return passed()
    except (RuntimeError, NormscopeError) as error:
        if "require grad" not in str(error):
            raise
    torch.set_rng_state(random)
    with torch.enable_grad():
        return passed()


@contextmanager
def readable_errors() -> Iterator[None]:
    """Say in one line what torch or the user's own code raised on a model and a batch."""
    try:
        yield
    except (NormscopeError, KeyboardInterrupt, GeneratorExit):
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"out of memory on the device: give a smaller batch ({one_line(error)[:120]})") from error
    except BaseException as error:  # the model and the loss are somebody's own code, which may raise anything, or exit
        if "more than 1 value per channel" in str(error):
            message = "a batch of one example has no batch statistics: give two or more, or put batch norm in eval mode"
            raise InvalidBatch(message) from error
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise DeviceError(f"out of memory: give a smaller batch ({one_line(error)[:120]})") from error
        raise InvalidBatch(f"the model or its loss does not take this batch: {raised(error)}") from error


def constant_loss(model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn | None = None) -> float:
    """L_c, the loss of the best constant output: what can be reached without looking at the input.

    With the default cross-entropy the entropy of the labels (nats), whatever their shape; for a mapping whose loss is
    that of its `logits` and `labels` the same; for another loss what `best_constant` finds. Where that finds nothing,
    the mean loss with the targets permuted against the inputs (a pair's second part, a mapping's `labels`). Runs the
    model in the mode it is in. NaN where there are no targets, or they cannot be told from the inputs.
    """
    batches = list(batches)
    if labels_tell_constant_loss(batches, loss_fn):
        labels = torch.cat([labelled_pair(batch)[1].flatten() for batch in batches]).long()
        with readable_errors():
            return label_entropy(labels[labels != IGNORED_LABEL])
    if loss_fn is not None and batches:
        fitted = best_constant_loss(model, batches, loss_fn)
        if not math.isnan(fitted):
            return fitted
    if loss_fn is None and batches and all(_is_cross_entropy(model, batch) for batch in batches[:1]):
        labels = torch.cat([batch["labels"].flatten() for batch in batches]).long()
        return label_entropy(labels[labels != IGNORED_LABEL])
    permuted = [targets_permuted(batch) for batch in batches]
    if not permuted or any(batch is None for batch in permuted):
        return float("nan")
    with readable_errors():
        losses = [loss_value(model, batch, loss_fn) for batch in permuted]
    return float(torch.stack(losses).mean())


def _is_cross_entropy(model: nn.Module, batch: Batch) -> bool:
    """Whether the loss that a model gives for a mapping is the cross-entropy of its own `logits` and the mapping's
    `labels`, or of the logits and the label after (as of a causal language model), by number."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return False
    with torch.no_grad(), readable_errors():
        output = model(**batch)
    parts = [
        output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in ("loss", "logits")
    ]
    loss, logits = parts
    if not isinstance(loss, Tensor) or not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        return False
    pairs = [(logits, labels), *([(logits[:, :-1], labels[:, 1:])] if labels.ndim > 1 else [])]
    found = [float(F.cross_entropy(x.flatten(0, -2).float(), y.flatten().long())) for x, y in pairs]
    return any(abs(one - float(loss)) <= CROSS_ENTROPY_TOLERANCE * abs(one) for one in found)


def labels_tell_constant_loss(batches: Iterable[Batch], loss_fn: LossFn | None) -> bool:
    """Whether L_c follows from the labels alone, so that the model need not be run."""
    return loss_fn is None and all(not isinstance(batch, Mapping) for batch in batches)


def label_entropy(labels: Tensor) -> float:
    """The entropy of the shares of int64 labels (N,), in nats; NaN where there are none."""
    counts = torch.bincount(labels).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum()) + 0.0 if len(share) else float("nan")


def _checked_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = labelled_pair(batch)
    logits = model(inputs)
    if isinstance(logits, Tensor) and logits.ndim > 1:
        along_last = logits.ndim > 2 and labels.shape == logits.shape[:-1]
        classes = logits.shape[-1 if along_last else 1]
        used = labels[labels != IGNORED_LABEL]
        if labels.numel() and not used.numel():
            raise InvalidBatch(f"every label is {IGNORED_LABEL}, which cross-entropy leaves out: give some others")
        if used.numel() and (int(used.min()) < 0 or int(used.max()) >= classes):
            span = f"from {int(used.min())} to {int(used.max())}"
            raise InvalidBatch(
                f"labels go {span}, but the model has {classes} outputs: labels must lie in 0 to {classes - 1}"
            )
    return cross_entropy(logits, labels)


@torch.no_grad()
def output_spread(model: nn.Module, batch: Batch) -> float:
    """How much the outputs depend on the input: their standard deviation over examples (root mean square over the
    outputs) as a share of their own root mean square. 0 for a network that says the same whatever it sees; NaN where
    there is no output to see. Runs the model in the mode it is in."""
    output = call(model, batch)
    logits = entry(output, "logits")
    tensor = output if logits is None else logits
    if not isinstance(tensor, Tensor) or not tensor.numel() or not tensor.ndim:
        return float("nan")
    values = tensor.double().reshape(len(tensor), -1)
    size = float(values.square().mean().sqrt())
    return float(values.var(0, correction=0).mean().sqrt()) / size if size else 0.0
