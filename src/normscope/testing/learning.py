"""A test of a model and its data in seconds: is anything wrong, and does it learn?"""

from normscope.descent.optimizers import OptimizerFactory
from normscope.diagnosis.diagnose import diagnose
from normscope.diagnosis.words import NOT_LEARNING, findings_text, has_fault, score_of
from normscope.model.build import ModelOrBuild
from normscope.model.loss import LossFn
from normscope.model.mini_batches import Batches


def assert_can_learn(
    model: ModelOrBuild,
    batches: Batches,
    *,
    optimizer: str | OptimizerFactory = "adam",
    loss_fn: LossFn | None = None,
    lr: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Fail where `normscope.diagnose` finds a fault, or where the model does not learn within `steps`.

    Args:
        model, batches, optimizer, loss_fn, lr, steps, seed: as for `normscope.diagnose`.

    Raises:
        AssertionError: a fault, in the words of `normscope diagnose`, or nothing was learned.
        NormscopeError: nothing can be measured.
    """
    __tracebackhide__ = True
    tree = diagnose(model, batches, optimizer=optimizer, loss_fn=loss_fn, lr=lr, steps=steps, seed=seed)
    if has_fault(tree) or score_of(tree) < NOT_LEARNING:
        raise AssertionError(findings_text(tree))
