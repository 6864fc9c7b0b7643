"""What a sweep consists of, and that a spec which cannot be is refused before anything runs."""

from dataclasses import replace

import pytest

import normscope as ns
from normscope.errors import InvalidConfig
from normscope.sweeps.spec import configs_of
from normscope.training.config import RunConfig

SPEC = """
[base]
net = "mlp3"
data = "digits"
epochs = 2

[axes]
norm = ["batch", "none"]
lr = [0.1, 1]
seed = [0, 1, 2]
"""


def test_a_spec_is_every_combination_of_its_axes(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    configs = configs_of(tmp_path / "spec.toml")
    base = RunConfig(net="mlp3", data="digits", epochs=2)
    assert configs == [
        replace(base, norm=norm, lr=lr, seed=seed)
        for norm in ("batch", "none")
        for lr in (0.1, 1.0)
        for seed in (0, 1, 2)
    ]
    assert configs_of(str(tmp_path / "spec.toml")) == configs
    assert configs_of(configs + configs) == configs, "each once"


def test_without_axes_a_spec_is_one_run_and_without_a_base_the_papers():
    assert configs_of({"base": {"seed": 3}}) == [RunConfig(seed=3)]
    assert configs_of({"axes": {"milestones": [[0.5], [0.5, 0.75]]}}) == [RunConfig(milestones=(0.5,)), RunConfig()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC.replace("[axes]", "[axis]"), "unknown part 'axis': did you mean 'axes'? known: base, axes"),
        (SPEC.replace("norm", "nrom"), "unknown key in [axes]: 'nrom': did you mean 'norm'?"),
        (SPEC.replace("epochs", "epoch"), "unknown key in [base]: 'epoch': did you mean 'epochs'?"),
        (SPEC.replace('"none"', '"nome"'), "unknown norm 'nome': did you mean 'none'?"),
        (SPEC.replace("0.1, 1", "0.1, -1"), "lr is -1: it must be above 0"),
        (SPEC.replace("0.1, 1", ""), "axis lr is empty: give one value or more, or leave it out"),
        (SPEC.replace("0.1, 1", "1, 1.0"), "axis lr has a value twice: [1, 1.0]"),
        (SPEC.replace("[0.1, 1]", "0.1"), "axis lr is 0.1: give a list, or move it to [base]"),
        (SPEC.replace("epochs", "lr"), "lr is in [base] and in [axes]: leave it in one of them"),
        (SPEC.replace("2\n", '"two"\n'), "epochs is 'two': give a whole number"),
        (SPEC.replace("mlp3", "resnet19"), "resnet depth must be 6n+2, not 19: 14 and 20 are nearest"),
        (
            SPEC.replace("epochs = 2", "train_size = 2000"),
            "train_size is 2000: it must be at least 10 and at most 1437",
        ),
        ("base = 3", "base is 3: give a table, [base]"),
        ("[base\n", "cannot be read as TOML"),
        ("base.seed = " + "1" * 5000, "cannot be read as TOML"),
        ("\xff", "cannot be read as TOML"),
        (None, "no such file: give a TOML file with [base] and [axes]"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_anything_runs(tmp_path, text, message):
    path = tmp_path / "spec.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidConfig) as error:
        ns.sweep(path, tmp_path / "out")
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("configs", "options", "message"),
    [
        ([], {}, "no runs: give one config or more"),
        ([{"lr": 0.1}], {}, "this list holds a dict"),
        ([RunConfig(data="digits")], {"workers": 0}, "workers is 0: it must be at least 1"),
        ([RunConfig(data="digits")], {"threads": 0}, "threads is 0: it must be at least 1"),
    ],
)
def test_what_else_is_refused(tmp_path, configs, options, message):
    with pytest.raises(InvalidConfig, match=message):
        ns.sweep(configs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
