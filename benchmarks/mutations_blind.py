"""The second half of the mutation benchmark's operators: mistakes that real people make, by somebody who had not seen
the rules of the diagnosis. They were run once; nothing was mended after them before the numbers were written down.

A program is a dict: `model` (builder of an nn.Module), `batches` (list of (x, y)), `loss` (of output and target),
`optimizer` (factory(params)), `lr`, `steps`. An operator takes one and returns a mutated copy, or raises
`NotApplicable` where the program has nothing that it could spoil. `HALF` has them as operators of a `Spec`.

Sources: SO = the kind of StackOverflow question; forum = discuss.pytorch.org; GH = GitHub issues; papers: Islam 2019
(FSE, deep-learning bugs), Humbatova 2020 (taxonomy of real faults), DeepCrime 2021, AutoTrainer 2021, DeepFD 2022,
NeuraLint 2021, Zhang 2018 (TensorFlow bugs); Karpathy: his list of common neural-net mistakes and the recipe.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.mutation_models import Batch, Spec

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
OPERATORS = []


class NotApplicable(Exception):
    pass


def operator(name, category):
    def register(function):
        OPERATORS.append((name, category, function))
        return function

    return register


# ---------------------------------------------------------------------------------------------------- helpers


def changed(spec, **changes):
    out = dict(spec)
    out.update(changes)
    return out


def rebuilt(spec, edit):
    """The spec with `edit(net)` after every build: in place, or it returns another module."""
    build = spec["model"]

    def model(*args, **kwargs):
        net = build(*args, **kwargs)
        other = edit(net)
        return net if other is None else other

    try:
        model()
    except TypeError as error:  # a builder that needs a seed
        if "argument" not in str(error):
            raise
        model(0)
    return changed(spec, model=model)


def replaced(net, types, make):
    """Every module of these types replaced by `make(old)`; how many were."""
    count = 0
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, types):
                setattr(parent, name, make(child))
                count += 1
    return count


def weighted(net):
    """Modules with a weight matrix, in order of registration."""
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]


def need(condition, why=""):
    if not condition:
        raise NotApplicable(why)


def is_classes(spec):
    target = spec["batches"][0][1]
    return not target.is_floating_point()


def is_flat_classes(spec):
    return is_classes(spec) and spec["batches"][0][1].ndim == 1


def is_float_input(spec):
    return spec["batches"][0][0].is_floating_point()


def class_count(spec):
    return int(max(y.max() for _, y in spec["batches"])) + 1


def with_inputs(spec, change):
    return changed(spec, batches=[(change(x.clone()), y) for x, y in spec["batches"]])


def with_targets(spec, change):
    return changed(spec, batches=[(x, change(y.clone())) for x, y in spec["batches"]])


def with_factory(spec, make, **changes):
    """`make(params)` gives the optimizer; its rate is set to the spec's."""
    out = changed(spec, **changes)

    def factory(params, lr=None):
        optimizer = make(params)
        for group in optimizer.param_groups:
            group["lr"] = out["lr"] if lr is None else lr
        return optimizer

    out["optimizer"] = factory
    return out


class Then(nn.Module):
    """A model with a function behind it."""

    def __init__(self, net, function):
        super().__init__()
        self.net = net
        self.function = function

    def forward(self, x):
        return self.function(self.net(x))


class Before(nn.Module):
    """A model with a function in front of it."""

    def __init__(self, net, function):
        super().__init__()
        self.net = net
        self.function = function

    def forward(self, x):
        return self.net(self.function(x))


class Fixed(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def class_axis(output):
    return 1 if output.ndim != 3 else -1  # (N, C), (N, C, H, W), or (N, T, C)


# ------------------------------------------------------------------------------------------------- activation


@operator("relu_on_output", "activation")
def relu_on_output(spec):
    """SO 'loss stuck at 2.303': the activation is applied after the last layer too, as in a loop over all layers."""
    return rebuilt(spec, lambda net: Then(net, torch.relu))


@operator("softmax_before_cross_entropy", "activation")
def softmax_before_cross_entropy(spec):
    """SO's most asked PyTorch question: nn.Softmax in forward, CrossEntropyLoss outside (Humbatova: wrong
    activation)."""
    need(is_classes(spec))
    return rebuilt(spec, lambda net: Then(net, lambda out: out.softmax(class_axis(out))))


@operator("sigmoid_on_class_logits", "activation")
def sigmoid_on_class_logits(spec):
    """SO: a sigmoid kept from a binary tutorial as the output of a multi-class network."""
    need(is_classes(spec))
    return rebuilt(spec, lambda net: Then(net, torch.sigmoid))


@operator("softmax_over_batch", "activation")
def softmax_over_batch(spec):
    """SO / the 'implicit dimension choice for softmax' warning: softmax over dim 0, the batch, and the loss's logits of
    it."""
    need(is_classes(spec))
    return rebuilt(spec, lambda net: Then(net, lambda out: out.softmax(0)))


@operator("sigmoid_hidden", "activation")
def sigmoid_hidden(spec):
    """Keras/PyTorch newcomers, AutoTrainer's vanishing gradient: sigmoid in every hidden layer of a deep net."""

    def edit(net):
        need(replaced(net, ACTIVATIONS, lambda old: nn.Sigmoid()) >= 2, "no activation modules")

    return rebuilt(spec, edit)


@operator("no_activations", "activation")
def no_activations(spec):
    """SO 'my network is no better than logistic regression': forward() chains Linears without a non-linearity
    (NeuraLint)."""

    def edit(net):
        need(replaced(net, ACTIVATIONS, lambda old: nn.Identity()) >= 1, "no activation modules")

    return rebuilt(spec, edit)


@operator("tanh_output_for_regression", "activation")
def tanh_output_for_regression(spec):
    """SO: the bounded output (tanh/sigmoid) of a regression whose targets go beyond it (DQN values, prices)."""
    need(not is_classes(spec))
    need(max(float(y.abs().max()) for _, y in spec["batches"]) > 1.2, "targets are within the bounds")
    return rebuilt(spec, lambda net: Then(net, torch.tanh))


@operator("clipped_activation", "activation")
def clipped_activation(spec):
    """GH 'my ResNet is worse than the plain one': the hidden activation exchanged by a hard clipping (ReLU6/hardtanh
    with bounds meant for quantization, too narrow), gradients vanish outside."""

    def edit(net):
        need(replaced(net, ACTIVATIONS, lambda old: nn.Hardtanh(-0.01, 0.01)) >= 1, "no activation modules")

    return rebuilt(spec, edit)


# ------------------------------------------------------------------------------------------------------- loss


@operator("nll_on_logits", "loss")
def nll_on_logits(spec):
    """SO 'loss becomes negative': nll_loss without log_softmax, on raw logits."""
    need(is_flat_classes(spec))
    return changed(spec, loss=lambda output, target: F.nll_loss(output, target))


@operator("nll_on_probabilities", "loss")
def nll_on_probabilities(spec):
    """Forum: Softmax in place of LogSoftmax before NLLLoss; the loss lies between -1 and 0."""
    need(is_flat_classes(spec))
    return changed(spec, loss=lambda output, target: F.nll_loss(output.softmax(1), target))


@operator("summed_loss", "loss")
def summed_loss(spec):
    """Forum: size_average=False / reduction='sum' copied from a VAE example, with the rate of a mean."""
    inner = spec["loss"]

    def loss(output, target):
        return inner(output, target) * target.numel()

    return changed(spec, loss=loss)


@operator("loss_over_batch_twice", "loss")
def loss_over_batch_twice(spec):
    """SO: `loss / len(train_loader.dataset)` before backward(), so that gradients are thousands of times too small."""
    inner = spec["loss"]
    count = sum(len(x) for x, _ in spec["batches"])
    return changed(spec, loss=lambda output, target: inner(output, target) / max(count, 1000))


@operator("mse_broadcast", "loss")
def mse_broadcast(spec):
    """SO and PyTorch's own warning: outputs (N, 1) against targets (N,): every output is pulled to the mean of
    targets."""
    target = spec["batches"][0][1]
    need(target.is_floating_point() and target.ndim == 2 and target.shape[1] == 1, "no column of targets")

    def loss(output, target):
        return ((output - target.squeeze(1)) ** 2).mean()

    return changed(spec, loss=loss)


@operator("loss_sign", "loss")
def loss_sign(spec):
    """GAN and policy-gradient programs: the minus of the objective forgotten (Humbatova: wrong loss calculation)."""
    inner = spec["loss"]
    return changed(spec, loss=lambda output, target: -inner(output, target))


@operator("ignored_class", "loss")
def ignored_class(spec):
    """SO (translation, tagging, segmentation): ignore_index=0, where 0 is a real and the most frequent class: all
    others relabelled as padding by a wrong mask too, so that one class is left."""
    need(is_classes(spec))
    inner = spec["loss"]

    def loss(output, target):
        kept = torch.zeros_like(target)  # the mask was built from zeros: every target became the pad's class
        return inner(output, torch.where(target == 0, target, kept))

    return changed(spec, loss=loss)


@operator("class_weights_wrong", "loss")
def class_weights_wrong(spec):
    """SO 'my model predicts one class only': weights proportional to the frequency in place of its inverse, here
    unnormalized."""
    need(is_flat_classes(spec))
    weight = torch.full((class_count(spec),), 1e-3)
    weight[0] = 1.0
    return changed(spec, loss=lambda output, target: F.cross_entropy(output, target, weight=weight))


@operator("mse_on_softmax", "loss")
def mse_on_softmax(spec):
    """Newcomers: squares of softmax against one-hot in place of cross-entropy (Humbatova: wrong loss function)."""
    need(is_flat_classes(spec))

    def loss(output, target):
        return F.mse_loss(output.softmax(1), F.one_hot(target, output.shape[1]).to(output.dtype))

    return changed(spec, loss=loss)


@operator("mean_of_outputs_in_loss", "loss")
def mean_of_outputs_in_loss(spec):
    """Research code: the loss is of the batch's mean output and mean target (mean before the square), nothing is said
    of examples."""
    need(not is_classes(spec))
    inner = spec["loss"]
    return changed(spec, loss=lambda output, target: inner(output.mean(0, keepdim=True), target.mean(0, keepdim=True)))


# ---------------------------------------------------------------------------------------------- learning rate


@operator("rate_100_times", "learning_rate")
def rate_100_times(spec):
    """DeepCrime HLR, AutoTrainer's oscillating/exploding: a rate two decades too large."""
    out = changed(spec, lr=spec["lr"] * 100)
    return with_factory(out, spec["optimizer"])


@operator("rate_thousandth", "learning_rate")
def rate_thousandth(spec):
    """DeepCrime, AutoTrainer's slow convergence: 1e-6 'to be safe' after a NaN."""
    out = changed(spec, lr=spec["lr"] / 1000)
    return with_factory(out, spec["optimizer"])


@operator("adams_rate_with_sgd", "learning_rate")
def adams_rate_with_sgd(spec):
    """SO: Adam exchanged for plain SGD, the rate of 1e-4 kept."""
    return with_factory(spec, lambda params: torch.optim.SGD(params, lr=1e-4), lr=1e-4)


@operator("sgds_rate_with_adam", "learning_rate")
def sgds_rate_with_adam(spec):
    """SO: SGD exchanged for Adam, the rate of 0.1 kept."""
    return with_factory(spec, lambda params: torch.optim.Adam(params, lr=0.1), lr=0.1)


@operator("scheduler_each_batch", "learning_rate")
def scheduler_each_batch(spec):
    """Forum: scheduler.step() (gamma 0.5, meant per epoch) inside the loop over batches: the rate is gone in 20
    steps."""
    inner = spec["optimizer"]
    out = changed(spec)

    def factory(params, lr=None):
        optimizer = inner(params)
        for group in optimizer.param_groups:
            group["lr"] = out["lr"] if lr is None else lr

        def decay(optimizer, args, kwargs):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5

        optimizer.register_step_post_hook(decay)
        return optimizer

    out["optimizer"] = factory
    return out


# -------------------------------------------------------------------------------------------------- optimizer


@operator("only_last_layer_passed", "optimizer")
def only_last_layer_passed(spec):
    """Fine-tuning tutorials: the optimizer was given model.fc.parameters() alone, the body is random and stays so."""
    return with_factory(spec, lambda params: spec["optimizer"](list(params)[-2:]))


@operator("stale_head", "optimizer")
def stale_head(spec):
    """SO / GH: the optimizer was made before model.fc was replaced: the new head never moves. Two last tensors are left
    out."""
    return with_factory(spec, lambda params: spec["optimizer"](list(params)[:-2]))


@operator("no_zero_grad", "optimizer")
def no_zero_grad(spec):
    """The most famous one (SO 48001598): optimizer.zero_grad() forgotten: gradients add up over all steps."""

    def make(params):
        optimizer = spec["optimizer"](list(params))
        optimizer.zero_grad = lambda set_to_none=True: None
        return optimizer

    return with_factory(spec, make)


@operator("momentum_999", "optimizer")
def momentum_999(spec):
    """Hyper-parameters of papers mixed up (Adam's beta2 as SGD's momentum)."""
    return with_factory(spec, lambda params: torch.optim.SGD(params, lr=spec["lr"], momentum=0.999))


@operator("adam_eps_large", "optimizer")
def adam_eps_large(spec):
    """eps=1.0 from the Inception recipe (TensorFlow's docs) or eps mistaken for a rate's decay: steps shrink a
    thousandfold."""
    return with_factory(spec, lambda params: torch.optim.Adam(params, lr=1e-3, eps=1.0), lr=1e-3)


@operator("maximize", "optimizer")
def maximize(spec):
    """maximize=True copied from a REINFORCE example; the loss rises."""
    return with_factory(spec, lambda params: torch.optim.SGD(params, lr=spec["lr"], maximize=True))


@operator("weight_decay_one", "optimizer")
def weight_decay_one(spec):
    """GH: decay and rate interchanged in the call, or AdamW's 0.1..1 decay given to SGD, where it is coupled to a large
    rate."""

    def make(params):
        optimizer = spec["optimizer"](list(params))
        for group in optimizer.param_groups:
            group["weight_decay"] = 1.0 if not isinstance(optimizer, torch.optim.AdamW) else 0.3 / spec["lr"] / 10
        return optimizer

    return with_factory(spec, make)


@operator("optimizer_made_each_step", "optimizer")
def optimizer_made_each_step(spec):
    """SO: the optimizer is made anew inside the loop: Adam's or momentum's state is lost at every step (an Adam of
    first steps is sign descent)."""

    def make(params):
        optimizer = spec["optimizer"](list(params))
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.state.clear())
        return optimizer

    return with_factory(spec, make)


# ----------------------------------------------------------------------------------------------------- epochs


@operator("too_few_steps", "epochs")
def too_few_steps(spec):
    """Humbatova, DeepCrime HNE: one epoch of a small data set, then 'accuracy is 12 %'."""
    return changed(spec, steps=max(2, spec["steps"] // 30))


@operator("loop_over_one_batch", "epochs")
def loop_over_one_batch(spec):
    """SO: next(iter(loader)) inside the loop without shuffling: only the first batch is ever seen."""
    return changed(spec, batches=[spec["batches"][0]] * len(spec["batches"]))


# ------------------------------------------------------------------------------------------------- batch size


@operator("batch_of_two", "batch_size")
def batch_of_two(spec):
    """GH 'BatchNorm with small batches': out of memory, so batch_size=2, the rate kept."""
    batches = [(x[i : i + 2], y[i : i + 2]) for x, y in spec["batches"] for i in range(0, len(x) - 1, 2)]
    return changed(spec, batches=batches)


@operator("one_batch_of_all", "batch_size")
def one_batch_of_all(spec):
    """SO: the whole data set as one tensor through the model, one step an epoch, and as many epochs as there were:
    DeepCrime HBS."""
    x = torch.cat([x for x, _ in spec["batches"]])
    y = torch.cat([y for _, y in spec["batches"]])
    return changed(spec, batches=[(x, y)], steps=max(2, spec["steps"] // len(spec["batches"])))


@operator("sorted_by_class", "batch_size")
def sorted_by_class(spec):
    """SO 'accuracy jumps between epochs': shuffle=False with files sorted by class: every batch has one class."""
    need(is_flat_classes(spec))
    x = torch.cat([x for x, _ in spec["batches"]])
    y = torch.cat([y for _, y in spec["batches"]])
    order = y.argsort(stable=True)
    size = len(spec["batches"][0][0])
    return changed(spec, batches=list(zip(x[order].split(size), y[order].split(size), strict=True)))


# --------------------------------------------------------------------------------------------- initialization


@operator("zeros", "initialization")
def zeros(spec):
    """Courses' homework, Humbatova, DeepCrime WCI: all weights zero, symmetry is never broken."""

    def edit(net):
        for p in net.parameters():
            nn.init.zeros_(p)

    return rebuilt(spec, edit)


@operator("constant", "initialization")
def constant(spec):
    """SO: nn.init.constant_(m.weight, 0.5) in a weights_init function copied to 'make it reproducible'."""

    def edit(net):
        for m in weighted(net):
            nn.init.constant_(m.weight, 0.5 / m.weight[0].numel() ** 0.5)

    return rebuilt(spec, edit)


@operator("standard_normal", "initialization")
def standard_normal(spec):
    """SO: weights of torch.randn / normal_(0, 1): saturated softmax, explosion in depth."""

    def edit(net):
        for m in weighted(net):
            nn.init.normal_(m.weight)

    return rebuilt(spec, edit)


@operator("tiny_normal", "initialization")
def tiny_normal(spec):
    """Old Caffe recipes: normal_(0, 0.001) in every layer of a net without norms: the signal dies."""

    def edit(net):
        for m in weighted(net):
            nn.init.normal_(m.weight, std=1e-3)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    return rebuilt(spec, edit)


@operator("negative_bias", "initialization")
def negative_bias(spec):
    """Detection code's prior bias given to all layers (if hasattr(m, 'bias')): ReLUs are dead from the start."""

    def edit(net):
        need(any(isinstance(m, nn.ReLU) for m in net.modules()), "no ReLU")
        for m in net.modules():
            bias = getattr(m, "bias", None) if isinstance(m, (nn.Linear, nn.Conv2d, *NORMS)) else None
            if bias is not None:
                nn.init.constant_(bias, -4.6)

    return rebuilt(spec, edit)


@operator("norm_gain_zero", "initialization")
def norm_gain_zero(spec):
    """GH: zero-init of the residual's last norm given to all norms (weights_init by class name): nothing passes."""

    def edit(net):
        norms = [m for m in net.modules() if isinstance(m, NORMS) and m.weight is not None]
        need(norms, "no norms")
        for m in norms:
            nn.init.zeros_(m.weight)

    return rebuilt(spec, edit)


@operator("huge_embedding", "initialization")
def huge_embedding(spec):
    """GH minGPT-like: nn.Embedding's N(0, 1) tied or scaled by sqrt(d) once more, without a norm behind: logits of size
    10 to 50."""

    def edit(net):
        embeddings = [m for m in net.modules() if isinstance(m, nn.Embedding)]
        need(embeddings, "no embedding")
        for m in embeddings:
            nn.init.normal_(m.weight, std=30.0)

    return rebuilt(spec, edit)


# ---------------------------------------------------------------------------------------------- preprocessing


@operator("pixels_to_255", "preprocessing")
def pixels_to_255(spec):
    """SO: torch.from_numpy(image).float() without / 255 and without a mean (Humbatova: missing normalization)."""
    need(is_float_input(spec))
    low = min(float(x.min()) for x, _ in spec["batches"])
    high = max(float(x.max()) for x, _ in spec["batches"])
    return with_inputs(spec, lambda x: (x - low) / (high - low) * 255)


@operator("scaled_twice", "preprocessing")
def scaled_twice(spec):
    """SO: ToTensor() divides by 255, then the user does again: all inputs are 0.00x and constant to the net."""
    need(is_float_input(spec))
    return with_inputs(spec, lambda x: x / 255)


@operator("one_feature_unscaled", "preprocessing")
def one_feature_unscaled(spec):
    """Tabular questions: a year, salary or time stamp left as it is beside scaled features."""
    x = spec["batches"][0][0]
    need(is_float_input(spec) and x.ndim == 2, "not tabular")

    def change(x):
        x[:, 0] = 2000 + 500 * x[:, 0]
        return x

    return with_inputs(spec, change)


@operator("nan_in_one_example", "preprocessing")
def nan_in_one_example(spec):
    """SO 'loss is nan after some batches': a CSV with an empty cell (or 0/0 of a constant feature's
    standardization)."""
    need(is_float_input(spec))
    batches = [(x.clone(), y) for x, y in spec["batches"]]
    batches[len(batches) // 2][0].view(-1)[3] = float("nan")
    return changed(spec, batches=batches)


@operator("view_for_permute", "preprocessing")
def view_for_permute(spec):
    """SO: x.view(N, C, H, W) of channels-last or (T, N) data in place of permute: examples or positions are mixed.
    Here: the batch was stored as (features, N) and viewed as (N, features)."""
    need(is_float_input(spec))
    return with_inputs(spec, lambda x: x.reshape(len(x), -1).T.contiguous().view(x.shape))


@operator("cast_to_integers", "preprocessing")
def cast_to_integers(spec):
    """SO: normalized images saved as uint8 (or torch.tensor(x, dtype=torch.long).float()): almost everything becomes
    0."""
    need(is_float_input(spec))
    top = max(float(x.abs().max()) for x, _ in spec["batches"])
    return with_inputs(spec, lambda x: (x / top * 0.99).trunc())


@operator("random_erasing_all", "preprocessing")
def random_erasing_all(spec):
    """Augmentation far too strong (RandomErasing p=1 of 90 %, ColorJitter of 10): the inputs are noise."""
    need(is_float_input(spec))
    generator = torch.Generator().manual_seed(0)
    return with_inputs(
        spec,
        lambda x: torch.where(
            torch.rand(x.shape, generator=generator) < 0.95, torch.randn(x.shape, generator=generator) * 3, x
        ),
    )


# ----------------------------------------------------------------------------------------------------- labels


@operator("shuffled_apart", "labels")
def shuffled_apart(spec):
    """SO: np.random.shuffle(X); np.random.shuffle(y), or sorted(os.listdir()) of one side only: labels belong to other
    inputs."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([y for _, y in spec["batches"]])
    y = y[torch.randperm(len(y), generator=generator)]
    sizes = [len(x) for x, _ in spec["batches"]]
    return changed(spec, batches=[(x, part) for (x, _), part in zip(spec["batches"], y.split(sizes), strict=True)])


@operator("noise_60", "labels")
def noise_60(spec):
    """DeepCrime TCL: crowdsourced or mis-joined labels, six of ten drawn at random."""
    generator = torch.Generator().manual_seed(1)
    pool = torch.cat([y for _, y in spec["batches"]])

    def change(y):
        wrong = torch.rand(len(y), generator=generator) < 0.6
        other = pool[torch.randint(len(pool), (len(y),), generator=generator)]
        return torch.where(wrong.view(-1, *[1] * (y.ndim - 1)), other, y)

    return with_targets(spec, change)


@operator("all_one_class", "labels")
def all_one_class(spec):
    """SO 'accuracy 100 % after one epoch': ImageFolder of the wrong root, a mask read as 0/255 and cast to 0: every
    label is 0."""
    return with_targets(spec, torch.zeros_like)


@operator("targets_unscaled", "labels")
def targets_unscaled(spec):
    """SO regression: prices or volts as they are (1e4 and more), with MSE and the rate of scaled ones."""
    need(not is_classes(spec))
    return with_targets(spec, lambda y: 5000 + 2000 * y)


@operator("shifted_by_one_twice", "labels")
def shifted_by_one_twice(spec):
    """Char-GPT: targets are already shifted and the loss shifts again in the wrong direction: the model copies its
    input."""
    x, y = spec["batches"][0]
    need(is_classes(spec) and not x.is_floating_point() and y.ndim == 2, "no sequence of tokens")
    return changed(spec, batches=[(x, x.clone()) for x, _ in spec["batches"]])


# ----------------------------------------------------------------------------------------------- architecture


@operator("bottleneck_of_one", "architecture")
def bottleneck_of_one(spec):
    """AutoML and autoencoder questions: a layer of one unit in the middle (sizes given in the wrong order)."""

    def edit(net):
        layers = [m for m in weighted(net) if isinstance(m, nn.Linear)]
        need(layers, "no linear layer")
        last = layers[-1]
        for parent in net.modules():
            for name, child in parent.named_children():
                if child is last:
                    setattr(
                        parent,
                        name,
                        nn.Sequential(nn.Linear(last.in_features, 1), nn.ReLU(), nn.Linear(1, last.out_features)),
                    )
                    return

    return rebuilt(spec, edit)


@operator("batch_first_wrong", "architecture")
def batch_first_wrong(spec):
    """SO's most asked LSTM question: (batch, time, feature) into an LSTM of batch_first=False: time runs over the
    batch."""

    def edit(net):
        layers = [m for m in net.modules() if isinstance(m, (nn.RNNBase, nn.MultiheadAttention)) and m.batch_first]
        need(layers, "nothing with batch_first")
        for m in layers:
            m.batch_first = False

    return rebuilt(spec, edit)


@operator("detached_in_forward", "architecture")
def detached_in_forward(spec):
    """SO: x = torch.tensor(x) / x.detach() / no_grad() in the middle of forward(): what lies before never learns."""

    def edit(net):
        layers = [m for m in weighted(net) if isinstance(m, nn.Linear)] or weighted(net)
        need(len(list(net.parameters())) >= 4, "one layer")
        layers[-1].register_forward_pre_hook(lambda module, args: tuple(a.detach() for a in args))

    return rebuilt(spec, edit)


@operator("body_frozen", "architecture")
def body_frozen(spec):
    """Transfer learning: requires_grad = False for all of a net that was not pretrained after all
    (pretrained=False)."""

    def edit(net):
        params = list(net.parameters())
        for p in params[:-2]:
            p.requires_grad_(False)

    out = rebuilt(spec, edit)
    return with_factory(out, lambda params: spec["optimizer"]([p for p in params if p.requires_grad]))


@operator("layers_in_a_list", "architecture")
def layers_in_a_list(spec):
    """SO: layers in a Python list in place of nn.ModuleList: they are not in parameters() and never move. All but the
    first and last layers' weights are left out of the optimizer."""

    def make(params):
        params = list(params)
        need(len(params) > 4, "no hidden layers")
        return spec["optimizer"](params[:2] + params[-2:])

    return with_factory(spec, make)


@operator("norms_removed", "architecture")
def norms_removed(spec):
    """Norms lost in a rewrite or conversion (fused for inference, then trained again) at the rate that was tuned with
    them."""

    def edit(net):
        need(replaced(net, NORMS, lambda old: nn.Identity()) >= 1, "no norms")

    return rebuilt(spec, edit)


@operator("mean_over_batch", "architecture")
def mean_over_batch(spec):
    """Pooling over the wrong axis (mean over channels or batch): outputs are the same for the whole batch."""
    return rebuilt(spec, lambda net: Then(net, lambda out: out.mean(0, keepdim=True) + 0 * out))


# --------------------------------------------------------------------------------------------- regularization


@operator("dropout_95", "regularization")
def dropout_95(spec):
    """keep_prob of TensorFlow 1 taken for p (0.95 kept becomes 0.95 dropped): AutoTrainer, Humbatova."""

    def edit(net):
        if replaced(net, (nn.Dropout, nn.Dropout2d), lambda old: nn.Dropout(0.95)) == 0:
            need(
                replaced(net, ACTIVATIONS, lambda old: nn.Sequential(old, nn.Dropout(0.95))) >= 1,
                "no activation modules",
            )

    return rebuilt(spec, edit)


@operator("dropout_on_output", "regularization")
def dropout_on_output(spec):
    """SO: F.dropout on the logits or on the predicted value, as the last line of forward()."""
    return rebuilt(spec, lambda net: nn.Sequential(net, nn.Dropout(0.7)))


@operator("l1_of_everything", "regularization")
def l1_of_everything(spec):
    """SO 'how to add L1': lambda of 0.1 times the sum of all |w|, not the mean: weights shrink to 0. By gradients, as
    the loss has no access to the model."""
    inner = spec["optimizer"]

    def make(params):
        params = list(params)
        optimizer = inner(params)

        def penalty(optimizer, args, kwargs):
            for p in params:
                if p.grad is not None:
                    p.grad.add_(p.detach().sign(), alpha=0.1)

        optimizer.register_step_pre_hook(penalty)
        return optimizer

    return with_factory(spec, make)


@operator("clipped_to_nothing", "regularization")
def clipped_to_nothing(spec):
    """GH: clip_grad_norm_(…, 1e-3) (a rate given as the norm, or clip_grad_value_ of the wrong scale), with SGD."""
    inner = spec["optimizer"]

    def make(params):
        params = list(params)
        optimizer = inner(params)
        need(isinstance(optimizer, torch.optim.SGD), "Adam does not care")

        def clip(optimizer, args, kwargs):
            torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], 1e-3)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    make([nn.Parameter(torch.zeros(1))])
    return with_factory(spec, make)


# --------------------------------------------------------------------------------------------------- numerics


@operator("log_of_softmax", "numerics")
def log_of_softmax(spec):
    """SO 'loss nan': torch.log(softmax(x)) by hand; one probability of 0 gives -inf * 0. With logits ten times too
    large, as for inputs that were not scaled."""
    need(is_flat_classes(spec))

    def loss(output, target):
        p = (100 * output).softmax(1)
        return -(F.one_hot(target, output.shape[1]) * torch.log(p)).sum(1).mean()

    return changed(spec, loss=loss)


@operator("root_at_zero", "numerics")
def root_at_zero(spec):
    """SO 'nan in backward': RMSE as sqrt(mse) or norm() of a difference that is 0 somewhere: infinite gradient times
    0."""
    need(not is_classes(spec))

    def loss(output, target):
        error = torch.relu((output - target).abs() - 0.05)  # a tolerance, as of an epsilon-insensitive loss
        return torch.sqrt(error**2).mean()

    return changed(spec, loss=loss)


@operator("exp_of_outputs", "numerics")
def exp_of_outputs(spec):
    """VAE / Poisson / attention by hand: exp of an unbounded output, squared: overflows at the first large one."""
    return rebuilt(spec, lambda net: Then(net, lambda out: torch.exp(30 * out)))


@operator("divided_by_std", "numerics")
def divided_by_std(spec):
    """SO: (x - mean) / std of each feature in the batch with std = 0 for constant pixels: NaN inputs."""
    need(is_float_input(spec))

    def change(x):
        flat = x.reshape(len(x), -1)
        flat[:, 0] = 0.5
        return ((flat - flat.mean(0)) / flat.std(0)).view(x.shape)

    return with_inputs(spec, change)


@operator("half_precision_weights", "numerics")
def half_precision_weights(spec):
    """GH: model.half() without a loss scale or float32 master weights: updates below 1e-3 of the weight are rounded
    away."""
    lr = spec["lr"] / 30  # the small rate of fine-tuning, which float32 would learn at

    def round_(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.data.copy_(p.data.to(torch.bfloat16))

    def make(params):
        optimizer = spec["optimizer"](list(params))
        optimizer.register_step_post_hook(round_)
        return optimizer

    return with_factory(spec, make, lr=lr)


# ------------------------------------------------------------------------------- as operators of the benchmark


HELD_OUT_TOO = (
    "pixels_to_255",
    "scaled_twice",
    "one_feature_unscaled",
    "view_for_permute",
    "cast_to_integers",
    "divided_by_std",
    "targets_unscaled",
)
"""What changes all data; the others change the training's alone."""


def adapted(name, function):
    """The operator of a `Spec`."""

    def of(one: Spec, batches: Sequence[Batch]):
        return function(
            {
                "model": one.build,
                "batches": list(batches),
                "loss": one.loss,
                "optimizer": lambda params, lr=one.lr: one.optimizer(params, lr),
                "lr": one.lr,
                "steps": one.steps,
            }
        )

    def operator(one: Spec) -> Spec | None:
        try:
            made = of(one, one.train)
            test = of(one, one.test)["batches"] if name in HELD_OUT_TOO else one.test
        except NotApplicable:
            return None
        return replace(
            one,
            build=made["model"],
            train=made["batches"],
            test=test,
            loss=made["loss"],
            optimizer=made["optimizer"],
            lr=made["lr"],
            steps=made["steps"],
        )

    return operator


HALF = [(name, category, adapted(name, function)) for name, category, function in OPERATORS]
