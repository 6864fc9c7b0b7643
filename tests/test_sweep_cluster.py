"""A sweep on a real Ray cluster of two nodes on this machine: local bits, and nothing lost with a node."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.errors import ClusterError, InvalidConfig
from normscope.paper.exhibit import Setting
from normscope.paper.measurement import reproduce
from normscope.paper.scale import SCALES, Scale
from normscope.results import load
from normscope.sweeps.engines.cluster import ray_engine
from normscope.sweeps.engines.engine import Engine
from normscope.sweeps.engines.node import NodeWorker, scratch
from normscope.sweeps.record import dataset_of, read_record
from normscope.sweeps.store import RunFiles
from normscope.testing.engines import EngineTestCase
from normscope.training.config import PROTOCOL, RunConfig, key
from normscope.version import __version__

QUICK = RunConfig(net="mlp2", data="digits", train_size=200, batch_size=50, epochs=2, precision="fp32", device="cpu")
SLOW = replace(QUICK, net="resnet8", train_size=1000, epochs=8)

TINY = Scale(
    net="resnet8", data="digits", train_size=64, held_out=32, epochs=1, batch_size=32, evaluate_every=1,
    lrs=(0.1, 0.003), small=0.003,
    noise_net="resnet8", noise_lrs=(0.1,), noise_batch_sizes=(8,), depths=(8,), depth_steps=3,
    deeper_net="resnet8", deeper_lrs={"batch": 0.1, "final": 0.03, "none": 0.003}, reduced="",
)  # fmt: skip

# In a process of its own: Ray's own warnings are not ours to judge. Kills the second node, or adds one again, and
# answers "gone" or "here".
CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster

folder = sys.argv[1]
small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
os.environ.update(RAY_TMPDIR=folder, TMPDIR=folder + "/0")
cluster = Cluster(initialize_head=True, connect=False, head_node_args={**small, "include_dashboard": False})
os.environ["TMPDIR"] = folder + "/1"
second = cluster.add_node(**small)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(second, allow_graceful=False)
    else:
        second = cluster.add_node(**small)
        cluster.wait_for_nodes()
    print("gone" if line == "kill\\n" else "here", flush=True)
cluster.shutdown()
"""


def ask(process: subprocess.Popen[str], word: str) -> str:
    """Tell the cluster's process to "kill" or "add" the second node; its answer."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The process that holds it, its address, the folder in which each node keeps its own."""
    pytest.importorskip("ray", reason="Ray has no wheel here")
    with tempfile.TemporaryDirectory(prefix="ns", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: short
        for node in "01":
            (Path(folder) / node).mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None and process.stdin is not None
        address = next(line.strip() for line in process.stdout if line[0].isdigit())
        yield process, address, Path(folder)
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def running(replaced: str, *arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, which answers Ctrl-C as in a shell, with one thing replaced."""
    code = f"""
import json, sys
from unittest import mock
from normscope.cli import main
from normscope.paper.scale import SCALES, Scale
from normscope.training.config import RunConfig
with {replaced}:
    main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sweeping(folder: Path, configs: list[RunConfig], address: str) -> subprocess.Popen[str]:
    """`normscope sweep` of these configs."""
    values = json.dumps([config.to_mapping() for config in configs])
    replaced = f"""mock.patch(
    "normscope.sweeps.sweep.configs_of",
    lambda spec: [RunConfig.from_mapping(each) for each in json.loads({values!r})],
)"""
    return running(replaced, "sweep", "spec", "--out", folder, "--ray", address)


def assert_as_by_hand(folder: Path, configs: list[RunConfig], tmp_path: Path) -> None:
    for config in configs:
        alone = ns.train(config, threads=1, weights=tmp_path / "alone")
        there = dataset_of(read_record(folder / "runs" / f"{key(config)}.json"))
        xr.testing.assert_identical(there.drop_vars("seconds"), alone.drop_vars("seconds"))
        assert (folder / "runs" / f"{key(config)}.safetensors").read_bytes() == (tmp_path / "alone").read_bytes()


def quiet_lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith("sweep: ")]


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("one_thread")
class TestRayEngine(EngineTestCase):
    @pytest.fixture(autouse=True)
    def _address(self, cluster):
        self.address = cluster[1]

    def engine(self, folder: Path) -> Engine:
        return ray_engine(self.address, workers=self.workers)

    test_closed_it_takes_no_more = None  # what Ctrl-C does, below, takes it further


@pytest.mark.usefixtures("one_thread")
def test_a_cluster_gives_the_bits_of_this_machine_and_keeps_no_scratch(cluster, tmp_path):
    _, address, nodes = cluster
    configs = [replace(QUICK, seed=seed, lr=lr) for seed in (0, 1) for lr in (0.1, 1e4)]
    sweep = sweeping(tmp_path / "out", configs, address)
    out, err = sweep.communicate(timeout=120)
    assert (sweep.returncode, out) == (0, f"4 runs: 2 diverged, 2 learn\n{tmp_path / 'out'}\n"), err
    assert quiet_lines(err) == [], "Ray is heard on the terminal"
    assert_as_by_hand(tmp_path / "out", configs, tmp_path)
    assert not list(nodes.glob(f"*/{scratch().name}/*")), "no checkpoint outlives its run"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["claims", "runs", "scratch"]


@pytest.mark.usefixtures("one_thread")
def test_reproduce_trains_an_exhibit_on_a_cluster_to_this_machines_bits(cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "quick", TINY)
    out = tmp_path / "there"
    arguments = ("deeper", "--net", "resnet8", "--seeds", 1, "--device", "cpu", "--out", out, "--ray", cluster[1])
    there = running(f"mock.patch.dict(SCALES, quick={TINY!r})", "reproduce", *arguments)
    said, err = there.communicate(timeout=120)
    assert there.returncode == 0 and said.splitlines()[-1] == str(out / "report.html"), err
    reproduce(["deeper"], Setting(load_data("digits"), seeds=(0,), net="resnet8"), tmp_path / "here")
    xr.testing.assert_equal(load(out / "deeper.nc"), load(tmp_path / "here" / "deeper.nc"))


def under_way(nodes: Path) -> set[str]:
    """Nodes on which there is a checkpoint."""
    return {path.parent.parent.name for path in nodes.glob(f"*/{scratch().name}/[!.]*")}


def wait_for_both(sweep: subprocess.Popen[str], nodes: Path) -> None:
    """Until each node has a checkpoint."""
    limit = time.monotonic() + 120
    while under_way(nodes) != {"0", "1"}:
        assert sweep.poll() is None, sweep.communicate()[1]
        if time.monotonic() > limit:
            sweep.kill()
            pytest.fail(f"after two minutes only {under_way(nodes)} is at work: {sweep.communicate()[1]}")
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_a_kill_stops_the_driver_and_frees_the_cluster(cluster, tmp_path, how):
    _, address, nodes = cluster
    long = [replace(SLOW, epochs=10_000, seed=seed) for seed in range(2)]
    sweep = sweeping(tmp_path / "out", long, address)
    wait_for_both(sweep, nodes)
    began = time.monotonic()
    sweep.send_signal(how)
    out, err = sweep.communicate(timeout=30)
    assert time.monotonic() - began < 10, "it takes half a second; a busy machine must not fail the test"
    assert out == ""
    if how == signal.SIGINT:
        assert sweep.returncode == 130
        assert quiet_lines(err) == ["normscope: interrupted: what is done is kept, run the same command to go on"]
    while (before := checkpoints(nodes)) and time.monotonic() - began < 30:
        time.sleep(2)  # each is written at every epoch's end, several times a second
        if checkpoints(nodes) == before:
            break
    else:
        pytest.fail("the cluster still trains")
    for path in before:
        path.unlink()


def checkpoints(nodes: Path) -> dict[Path, int]:
    """When each was written."""
    return {path: path.stat().st_mtime_ns for path in nodes.glob(f"*/{scratch().name}/[!.]*")}


@pytest.mark.usefixtures("one_thread")
def test_with_a_node_killed_midway_no_run_is_lost_or_done_twice(cluster, tmp_path):
    process, address, nodes = cluster
    configs = [replace(SLOW, epochs=16, seed=seed) for seed in range(4)]  # the other node must not be done with all
    sweep = sweeping(tmp_path / "out", configs, address)
    wait_for_both(sweep, nodes)
    assert ask(process, "kill") == "gone"
    assert sweep.poll() is None, "the sweep was over before the node was killed"
    begun = {path.name for path in nodes.glob(f"1/{scratch().name}/[!.]*")}
    assert begun <= set(map(key, configs)) and len(begun) == 1, "it left a run behind"
    out, err = sweep.communicate(timeout=200)
    assert (sweep.returncode, out) == (0, f"4 runs: 4 learn\n{tmp_path / 'out'}\n"), err
    assert quiet_lines(err) == []
    there = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert there == sorted(f"{key(config)}.{kind}" for config in configs for kind in ("json", "safetensors"))
    assert_as_by_hand(tmp_path / "out", configs, tmp_path)


def test_a_node_worker_says_epochs_and_files_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    worker = NodeWorker(gpu=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "auto is the processor then"
    assert worker.free(None) == (__version__, PROTOCOL)
    every_step = {"threads": 1, "checkpoint_seconds": 0.0}
    *epochs, files = worker.run(QUICK.to_mapping(), **every_step)
    assert epochs == [0, 1, 2] and isinstance(files, RunFiles)
    assert (scratch() / key(QUICK)).is_file(), "kept until the driver has the files"
    assert [each for each in worker.run(QUICK.to_mapping(), **every_step) if isinstance(each, int)] == [2]
    worker.free(key(QUICK))
    assert not list(scratch().iterdir())
    *_, error = worker.run({**QUICK.to_mapping(), "data": "cifar10"}, threads=1, data_dir=str(tmp_path / "nowhere"))
    assert isinstance(error, ns.errors.NormscopeError)
    scratch().rmdir()
    scratch_file = tmp_path / f"normscope-{os.getuid()}"
    scratch_file.write_text("mine")
    *_, error = worker.run(QUICK.to_mapping(), threads=1)
    assert "set TMPDIR on the node" in str(error)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port} (Connection refused): start one with"),
        ("ray://host:10001", "'ray://host:10001' is no address of a cluster: give HOST:PORT of its head, or auto"),
        ("nowhere", "'nowhere' is no address of a cluster"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line_and_leaves_nothing(tmp_path, address, message):
    port = free_port()
    pytest.importorskip("ray", reason="Ray has no wheel here")
    with pytest.raises(ClusterError) as error:
        ns.sweep([QUICK], tmp_path / "out", ray=address.format(port=port))
    assert str(error.value).startswith(message.format(port=port)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_port_of_something_else_is_told_from_a_cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray has no wheel here")
    monkeypatch.setattr(sys.modules[ray_engine.__module__], "PROBE_SECONDS", 4.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"what answers at {address} is no Ray cluster: give HOST:PORT"):
            ns.sweep([QUICK], tmp_path / "out", ray=address)
    assert not list(tmp_path.glob("out/runs/*"))


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"which is not installed: pip install 'normscope\[ray\]'"):
        ray_engine("auto")


def test_what_a_cluster_cannot_be_asked(tmp_path):
    with pytest.raises(InvalidConfig, match="on a cluster say cuda"):
        ns.sweep([replace(QUICK, device="cuda:1")], tmp_path / "out", ray="auto")
    with pytest.raises(InvalidConfig, match="both ray and engine"):
        ns.sweep([QUICK], tmp_path / "out", ray="auto", engine=lambda configs: iter(()))
    assert not (tmp_path / "out").exists()
