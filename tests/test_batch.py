"""A batch, whatever it is made of: counted, cut, joined, moved, its inputs and targets changed."""

from collections import namedtuple

import pytest
import torch
from zoo import ZOO

from normscope.errors import InvalidBatch
from normscope.model.batch import (
    count_examples,
    joined,
    map_inputs,
    num_bytes,
    num_examples,
    on_device,
    parts_of,
    take,
    targets_of,
    targets_permuted,
)

Sample = namedtuple("Sample", "image label")
X, Z = torch.arange(12.0).reshape(4, 3), torch.ones(4, 2)
Y = torch.tensor([3, 1, 0, 2])

BATCHES = {
    "pair": (X, Y),
    "list": [X, Y],
    "mapping": {"x": X, "labels": Y},
    "several inputs": ((X, Z), Y),
    "tensor": X,
    "named": Sample(X, Y),
    "nested mapping": ({"x": X}, {"labels": Y}),
    "list of examples": [{"x": X[i], "labels": Y[i]} for i in range(4)],
}


def tensors(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    nested = batch if isinstance(batch, dict | tuple | list) else ()
    return [tensor for part in (parts_of(nested) if nested else ()) for tensor in tensors(part)]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_examples_are_counted_cut_and_joined(batch):
    assert num_examples(batch) == count_examples(batch, at_least=4) == 4
    parts = [take(batch, [0, 1]), take(batch, torch.tensor([2])), take(batch, [3])]
    assert [num_examples(part) for part in parts] == [2, 1, 1]
    together = joined(parts)
    assert type(together) is type(batch) and num_examples(together) == 4
    assert all(torch.equal(a, b) for a, b in zip(tensors(together), tensors(batch), strict=True))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_a_batch_of_the_zoo_is_its_examples_joined(entry):
    batch = entry.batch(0)
    again = joined([take(batch, [i]) for i in range(num_examples(batch))])
    assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(batch), strict=True))


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_moved_to_another_device_it_keeps_its_form(batch):
    moved = on_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert all(tensor.is_meta for tensor in tensors(moved)) and len(tensors(moved)) == len(tensors(batch))
    assert num_bytes(batch) == sum(tensor.nbytes for tensor in tensors(batch))


@pytest.mark.parametrize("name", BATCHES)
def test_inputs_are_changed_and_targets_are_not(name):
    batch = BATCHES[name]
    changed = map_inputs(batch, lambda x: x + 1)
    assert type(changed) is type(batch)
    for before, after in zip(tensors(batch), tensors(changed), strict=True):
        assert torch.equal(after, before + 1 if before.is_floating_point() else before)


def test_the_second_part_of_a_pair_is_no_input_even_where_it_is_floating_point():
    inputs, targets = map_inputs((X, Z), lambda x: -x)
    assert torch.equal(inputs, -X) and targets is Z
    assert map_inputs({"x": X, "target": Z}, lambda x: -x)["target"] is Z


def test_every_target_is_moved_to_another_example():
    permuted = targets_permuted((X, Y))
    assert permuted[0] is X and sorted(permuted[1].tolist()) == [0, 1, 2, 3]
    assert (permuted[1] != Y).all()
    assert torch.equal(targets_permuted({"x": X, "labels": Y})["labels"], permuted[1])  # always the same
    assert targets_permuted((X[:1], Y[:1])) is None and targets_permuted(X) is None and targets_of([X, "text"]) is None


def test_what_does_not_fit_is_not_joined():
    assert joined([(X, Y), (Z, Y)]) is None
    assert joined([(X, Y), (X,)]) is None
    assert joined([{"x": X}, {"z": X}]) is None
    assert joined([torch.ones(()), torch.ones(())]) is None


def test_a_batch_without_a_tensor_says_so():
    assert num_examples("text") is None and num_bytes("text") == 0
    with pytest.raises(InvalidBatch, match="no tensor in this str says how many examples"):
        count_examples("text", at_least=1)
    with pytest.raises(InvalidBatch, match="holds 4 examples: give 5 or more"):
        count_examples((X, Y), at_least=5)
