"""Where residual branches end, as one forward pass shows it.

A residual sum is z = u + v, both computed from one activation x, where u passes through more layers than v:
u is the branch, v the shortcut (x itself, or a projection of it). The branch's tail is the layer or norm that u is the
output of; with its weight and bias zero, u is zero and z = v. Between tail and sum may stand what leaves zero zero:
reshaping, dropout, ReLU, a product with a parameter or with a gate computed from u itself.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.autograd.graph import Node

from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.batch import Batch, map_tensors
from normscope.model.layers import LayerCall, record_calls
from normscope.model.loss import LossFn, readable_errors
from normscope.model.state import untouched
from normscope.surgery.calls import forward, owns_layer_weight
from normscope.surgery.places import is_norm

_LEAVES_ZERO = {
    *("Mul", "Neg", "NativeDropout", "FusedDropout", "Relu", "Roll", "Slice", "Clone", "ToCopy", "Alias"),
    *("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze", "Expand"),
}
"""Autograd's names of operations whose output is zero where their input is."""


def found_tails(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> list[nn.Module]:
    """The tails of the residual branches in one forward pass, read from autograd's graph.

    Raises:
        InvalidConfig: where there is no residual sum.
        InvalidModel: where a branch off its own input ends in neither a layer nor a norm.
    """
    return list(found_branches(model, batch, loss_fn))


def found_branches(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, *, init: str = "zero_residual"
) -> dict[nn.Module, list[nn.Module]]:
    """The layers and norms of each residual branch, its tail among them, by the tail; `init` is named in errors, which
    are those of `found_tails`."""
    graph = _Graph(model, batch, loss_fn)
    branches: dict[nn.Module, list[nn.Module]] = {}
    for node in graph.nodes():
        if node.name() == "AddBackward0":
            for tail, layers in _branch_of_sum(graph, node, init):
                branches.setdefault(tail, layers)
    if not branches:
        raise InvalidConfig(f"init {init!r} is for models with residual branches: none shows on this batch")
    return branches


def _branch_of_sum(graph: "_Graph", node: Node, init: str) -> list[tuple[nn.Module, list[nn.Module]]]:
    terms = [term for term, _ in node.next_functions if term is not None]
    if len(terms) != 2 or terms[0] is terms[1]:
        return []
    before = [graph.ancestors(term) for term in terms]
    own = [len(graph.layers(before[i] - before[1 - i])) for i in (0, 1)]
    branch = 0 if own[0] > own[1] else 1
    if own[0] == own[1] or not graph.activations(before[0] & before[1]):
        return []  # two equals, or two that have nothing in common, such as embeddings of words and of positions
    tail = graph.tail(terms[branch])
    if tail is None and terms[1 - branch] in before[branch]:
        last = next(iter(graph.layers(before[branch] - before[1 - branch])))
        raise InvalidModel(
            f"init {init!r}: the residual branch with layer {last!r} ends in neither a layer nor a norm "
            "but in an operation; name its last layer in an attribute residual_tail of the block"
        )
    inside = [graph.outputs[one] for one in before[branch] - before[1 - branch] if one in graph.outputs]
    return [] if tail is None else [(tail, list(dict.fromkeys(inside)))]


class _Graph:
    """Autograd's graph of one forward pass, and which of its nodes are outputs of layers and norms."""

    def __init__(self, model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> None:
        self.outputs: dict[Node, nn.Module] = {}
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameters = {id(parameter) for parameter in model.parameters()}
        self.roots: list[Node] = []

        def on_call(call: LayerCall) -> None:
            module, output = call.module, call.output
            # the node is read here, because an in-place sum gives the tensor another one
            if output.grad_fn is not None:
                self.roots.append(output.grad_fn)
                path = self.paths[module]
                if is_norm(path, module) or owns_layer_weight(path, module):
                    self.outputs[output.grad_fn] = module

        with untouched(model), torch.enable_grad(), record_calls(model, on_call, "*"), readable_errors():
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            # Autograd follows the inputs too, so that a branch off the input itself is seen as one.
            followed = map_tensors(batch, lambda x: x.detach().requires_grad_() if x.is_floating_point() else x)
            self.result = forward(model, followed, loss_fn)

    def nodes(self) -> set[Node]:
        """Every node."""
        return self.ancestors(*self.roots)

    def ancestors(self, *nodes: Node) -> set[Node]:
        """What the nodes are computed from, themselves included."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            new = [parent for parent in _parents(waiting.pop()) if parent not in found]
            found.update(new)
            waiting += new
        return found

    def layers(self, nodes: Iterable[Node]) -> list[str]:
        """The paths of those nodes that are outputs of layers and norms."""
        return [self.paths[self.outputs[node]] for node in nodes if node in self.outputs]

    def activations(self, nodes: Iterable[Node]) -> list[Node]:
        """Those of the nodes that are not parameters themselves."""
        return [node for node in nodes if id(getattr(node, "variable", None)) not in self.parameters]

    def tail(self, node: Node) -> nn.Module | None:
        """The layer or norm that a term of a sum is the output of, but for operations that leave zero zero."""
        while node not in self.outputs:
            if node.name().split("Backward")[0] not in _LEAVES_ZERO:
                return None
            factors = self.activations(_parents(node))
            signal = [one for one in factors if all(one in self.ancestors(other) for other in factors)]
            if len(signal) != 1:
                return None
            node = signal[0]
        return self.outputs[node]


def _parents(node: Node) -> list[Node]:
    return [parent for parent, _ in node.next_functions if parent is not None]
