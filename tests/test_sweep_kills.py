"""kill -9 of drivers and workers, two drivers on one folder, Ctrl-C, full and read-only disks."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

import normscope as ns
from normscope.errors import OutputError, RunFailed
from normscope.sweeps.engines.engine import Advanced, Finished
from normscope.sweeps.engines.local import MAX_DEATHS, local_engine
from normscope.sweeps.record import dataset_of, encoded_record, read_record
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key

if not sys.platform.startswith("linux"):
    pytest.skip("finds processes in /proc", allow_module_level=True)

QUICK = RunConfig(net="mlp2", data="digits", train_size=200, batch_size=20, epochs=4, precision="fp32", device="cpu")
CONFIGS = [RunConfig(**{**QUICK.to_mapping(), "seed": seed}) for seed in range(4)]
LONG = RunConfig(**{**QUICK.to_mapping(), "net": "resnet20", "train_size": 1400, "epochs": 1000})

SWEEP = """
import json, os, random, signal, sys, time
from functools import partial
from pathlib import Path
import torch
import normscope as ns
from normscope.sweeps.engines.engine import Advanced, Finished
from normscope.sweeps.run import run
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key

torch.set_num_threads(1)
ns.load_data("digits")  # what it imports is then there after a fork
configs = [RunConfig.from_mapping(each) for each in json.loads(sys.argv[1])]

def engine(folder, chosen):
    # in this process, so that a fork is a driver with its workers; a checkpoint after every step
    for config in chosen:
        with (folder / f"trained by {os.getpid()}").open("a") as file:
            file.write(key(config) + "\\n")
        checkpoint = Store(folder).checkpoint(config)
        yield Finished(config, run(config, checkpoint=checkpoint, checkpoint_seconds=0.0))

def fork(folder):
    child = os.fork()
    if child == 0:
        try:
            ns.sweep(configs, folder, engine=partial(engine, folder))
        finally:
            os._exit(0)
    return child

for child in [fork(Path(sys.argv[2])), fork(Path(sys.argv[2]))]:
    os.waitpid(child, 0)

moments, kills, ended, longest = random.Random(int(sys.argv[5])), 0, False, float(sys.argv[4])
while not ended:
    child = fork(Path(sys.argv[3]))
    time.sleep(moments.uniform(0.02, longest))
    if kills < 20:
        os.kill(child, signal.SIGKILL)
    ended = not os.WIFSIGNALED(os.waitpid(child, 0)[1])
    kills += not ended
print(kills)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def trained_whole(configs: list[RunConfig], folder: Path) -> Path:
    """The sweep undisturbed."""
    for config in configs:
        dataset = ns.train(config, threads=1, weights=folder / "runs" / f"{key(config)}.safetensors")
        (folder / "runs" / f"{key(config)}.json").write_bytes(encoded_record(dataset))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return trained_whole(CONFIGS, tmp_path_factory.mktemp("whole"))


def assert_same(folder: Path, whole: Path) -> None:
    """The same files, with the same weights and results in them (but for the time it took)."""
    assert files(folder / "runs") == files(whole / "runs")
    assert files(folder / "scratch") == []
    for path in (whole / "runs").iterdir():
        there = folder / "runs" / path.name
        if path.suffix == ".safetensors":
            assert there.read_bytes() == path.read_bytes()
        else:
            xr.testing.assert_identical(*(dataset_of(read_record(file)).drop_vars("seconds") for file in (there, path)))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disturb(configs: list[RunConfig], tmp_path: Path, *, longest: float, seed: int = 0) -> int:
    """Sweep into `shared` by two drivers at once, into `killed` by drivers killed after at most so many seconds.

    How many were killed, at most 20: the next one ends the sweep.
    """
    (shared := tmp_path / "shared").mkdir(parents=True)
    (killed := tmp_path / "killed").mkdir()
    values = json.dumps([config.to_mapping() for config in configs])
    arguments = [sys.executable, "-c", SWEEP, values, str(shared), str(killed), str(longest), str(seed)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = [line for path in shared.glob("trained by *") for line in path.read_text().split()]
    assert sorted(trained) == sorted(map(key, configs)), "nothing twice"
    return int(done.stdout)


def test_two_drivers_share_the_work_and_one_killed_at_random_moments_loses_nothing(tmp_path, whole):
    assert disturb(CONFIGS, tmp_path, longest=0.15) >= 2, "killed more than once"
    assert_same(tmp_path / "shared", whole)
    assert_same(tmp_path / "killed", whole)


@pytest.mark.skipif("NORMSCOPE_SLOW_TESTS" not in os.environ, reason="takes minutes: set NORMSCOPE_SLOW_TESTS=1")
@pytest.mark.parametrize("runs", [1, 4])
def test_a_run_or_a_sweep_killed_at_twenty_random_moments_loses_nothing(tmp_path, runs):
    configs = [replace(CONFIGS[seed], net="resnet20", train_size=1400, epochs=16 // runs) for seed in range(runs)]
    assert disturb(configs, tmp_path, longest=1.0) == 20, "it was over before: let it take longer"
    whole = trained_whole(configs, tmp_path / "whole")
    assert_same(tmp_path / "shared", whole)
    assert_same(tmp_path / "killed", whole)


def children(of: int) -> list[int]:
    """The processes that this one has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_killed_worker_is_replaced_and_its_run_goes_on(tmp_path, whole):
    engine = local_engine(Store(tmp_path), workers=1, checkpoint_seconds=0.0)
    others, killed, epochs = set(children(os.getpid())), 0, []
    taken, taken_at_end = [], []

    def noted(configs):
        for config in configs:
            taken.append(config)
            yield config

    def killing(configs):
        nonlocal killed
        for event in engine(noted(configs)):
            if isinstance(event, Finished):
                taken_at_end.append(len(taken))
            yield event
            if isinstance(event, Advanced):
                epochs.append(event.epochs)
                if event.epochs == 2 and not killed:
                    (worker,) = set(children(os.getpid())) - others
                    os.kill(worker, signal.SIGKILL)
                    killed += 1

    ns.sweep(CONFIGS[:2], tmp_path, engine=killing)
    assert killed == 1
    assert epochs.count(0) == 2, "the run of the killed worker did not begin anew"
    assert taken_at_end == [2, 2], "the worker trains the second run while the first is being kept"
    assert set(children(os.getpid())) == others
    for config in CONFIGS[:2]:
        xr.testing.assert_identical(
            dataset_of(read_record(tmp_path / "runs" / f"{key(config)}.json")).drop_vars("seconds"),
            dataset_of(read_record(whole / "runs" / f"{key(config)}.json")).drop_vars("seconds"),
        )


def test_a_run_whose_workers_keep_dying_is_given_up(tmp_path, monkeypatch):
    """As where there is not memory enough for it."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match=f"its worker died {MAX_DEATHS} times"):
        ns.sweep([QUICK], tmp_path, workers=1)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`normscope sweep` on one long run, once it has written its first checkpoint."""
    values = {k: v for k, v in LONG.to_mapping().items() if v is not None}
    lines = [f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in values.items() if k != "seed"]
    (folder / "spec.toml").write_text("\n".join(["[base]", *lines, "[axes]", "seed = [0]"]))
    sweep = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from normscope.cli import main; main()",
            "sweep",
            "spec.toml",
            "--out",
            "out",
            *arguments,
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    scratch = folder / "out" / "scratch"
    while sweep.poll() is None and not (
        scratch.is_dir() and any(not p.name.startswith(".") for p in scratch.iterdir())
    ):
        time.sleep(0.05)
    return sweep


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_a_kill_stops_the_driver_and_its_workers(tmp_path, how):
    limit = 30  # it takes a second; a busy machine must not fail the test
    sweep = started(tmp_path, "--workers", "1")
    workers = children(sweep.pid)
    assert len(workers) == 1
    began = time.monotonic()
    sweep.send_signal(how)
    out, err = sweep.communicate(timeout=limit)
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.01)
        assert time.monotonic() - began < limit
    assert time.monotonic() - began < limit
    assert out == ""
    assert files(tmp_path / "out" / "scratch")[-1] == key(LONG), "what is done is kept"
    if how == signal.SIGINT:
        assert sweep.returncode == 130
        assert err.splitlines()[-1] == "normscope: interrupted: what is done is kept, run the same command to go on"


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    """A limit on the size of any file written stands for a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))

    (tmp_path / "spec.toml").write_text('[base]\ndata = "digits"\nnet = "mlp2"\nepochs = 1\ntrain_size = 200\n')
    done = subprocess.run(
        [sys.executable, "-c", "from normscope.cli import main; main()", "sweep", "spec.toml", "--out", "out"],
        cwd=tmp_path,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("sweep: ")]
    assert line.startswith("normscope: cannot write ") and "File too large; give another --out" in line
    assert files(tmp_path / "out" / "runs") == files(tmp_path / "out" / "scratch") == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*taken"):
        ns.sweep([QUICK], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"cannot write .*locked"):
        ns.sweep([QUICK], tmp_path / "locked")
