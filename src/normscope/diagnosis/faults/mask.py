"""A mask that lets a model see what it is to foretell, or hides everything from it."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion, module
from normscope.diagnosis.module_calls import LEAKS
from normscope.statistics.numbers import percent

MOST_HIDDEN = 0.5
"""Share of the queries all of whose keys are hidden: fewer may be those of padding."""

UPSIDE_DOWN = 0.3
"""What lies before an output changes it by less than this share of what lies ahead."""

CAUSAL = (
    "hidden = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)\n"
    'scores = scores.masked_fill(hidden, float("-inf"))  # or scaled_dot_product_attention(..., is_causal=True)'
)
VISIBLE = 'scores = scores.masked_fill(hidden, float("-inf"))  # hidden is True where a query must not look'


def _suspected(facts: Facts) -> Suspicion | None:
    order, seen = facts.order, facts.transformer
    blind = [one for one in seen.attentions if one.hidden >= MOST_HIDDEN] if seen else []
    if blind:
        return Suspicion(
            "a mask hides every key",
            f"In {module(blind[0].module)} all keys of {percent(blind[0].hidden)} of the queries are hidden: "
            "a softmax over such logits sees nothing, or all.",
            {"hidden_share": blind[0].hidden},
            True,
            place=blind[0].module,
        )
    if order is None or order.ahead < 1:
        return None
    if order.leak > LEAKS:
        where = module(order.leaks_in)
        if order.context < UPSIDE_DOWN * order.leak:
            return Suspicion(
                "a mask is upside down",
                f"The targets are the inputs {order.ahead} position{'s' * (order.ahead > 1)} ahead, and outputs change "
                f"by {percent(order.leak)} of their spread with inputs that lie ahead of them, but by "
                f"{percent(order.context)} with those before: the past is hidden in place of the future.",
                {"upside_down": order.leak, "context": order.context},
                True,
                place=order.leaks_in,
            )
        return Suspicion(
            "outputs see what they are to foretell",
            f"The targets are the inputs {order.ahead} position{'s' * (order.ahead > 1)} ahead, and outputs change by "
            f"{percent(order.leak)} of their spread with inputs that lie ahead of them: what is learned is to copy. "
            f"The first part that lets them through is {where}.",
            {"leak": order.leak},
            True,
            place=order.leaks_in,
        )
    if seen is not None and order.context == 0:
        return Suspicion(
            "positions do not see each other",
            f"The model has {len(seen.attentions)} layers of attention, and no output changes with the inputs before "
            "its own position.",
            {"context": order.context},
            True,
            place=seen.attentions[0].module,
        )
    return None


def _advice(_facts: Facts, suspicion: Suspicion) -> tuple[str, str]:
    if "leak" in suspicion.numbers:
        return "Hide the positions behind each query.", CAUSAL
    return "Look at the mask: which of True and False hides, and along which dim?", VISIBLE


FAULT = Fault("mask", "architecture", 4, suspected=_suspected, advice=_advice, early=True)
