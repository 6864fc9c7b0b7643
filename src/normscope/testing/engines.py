"""The contract of a sweep's engine as tests: a new engine subclasses `EngineTestCase` with one method.

    from normscope.testing.engines import EngineTestCase

    class TestMyEngine(EngineTestCase):
        def engine(self, folder):
            return my_engine(workers=self.workers)

What an engine is, is said in `normscope.sweeps.engines.engine`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from normscope.errors import DeviceError
from normscope.results import write_bytes
from normscope.sweeps.engines.engine import Advanced, Engine, Failed, Finished
from normscope.sweeps.record import dataset_of, read_record
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key
from normscope.training.train import train

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=2, precision="fp32", device="cpu")

LEARNS, DIVERGES = QUICK, replace(QUICK, norm="none", lr=1e4)
NO_DEVICE = replace(QUICK, device="cuda:99")
RUNS = (LEARNS, DIVERGES, NO_DEVICE, replace(QUICK, seed=1), replace(QUICK, seed=2))


class Taking(Iterator[RunConfig]):
    """Configs one after the other, with what was taken so far."""

    def __init__(self, configs: tuple[RunConfig, ...]) -> None:
        self._left, self.taken = iter(configs), []

    def __next__(self) -> RunConfig:
        self.taken.append(next(self._left))
        return self.taken[-1]


class EngineTestCase:
    """Subclass it as TestX in a file of tests, and say in `engine` how one is made."""

    workers = 2
    """How many runs the engine of these tests carries out at once, at most."""

    def engine(self, folder: Path) -> Engine:
        """An engine of `workers`, with one thread each.

        Args:
            folder: of a sweep, where one of this machine keeps its checkpoints (`Store(folder).checkpoint`).
        """
        raise NotImplementedError

    def test_runs_have_the_bits_of_training_by_hand_and_are_over_once(self, tmp_path: Path) -> None:
        """Diverged ones too, in any order; what cannot be carried out has failed, and the others go on."""
        store = Store(tmp_path)
        store.prepare()
        configs, over = Taking(RUNS), {}
        for event in self.engine(tmp_path)(configs):
            if isinstance(event, Advanced):
                continue
            # Taking a run claims it: one more than there are workers is the next, given before the last is kept.
            assert len(configs.taken) - len(over) <= self.workers + 1, "runs are taken before a worker is free"
            assert event.config not in over, "a run is over twice"
            over[event.config] = event
        assert set(over) == set(RUNS), "a run is lost"
        assert list(store.runs.glob("*")) == [], "the driver alone writes results"
        failed = over.pop(NO_DEVICE)
        assert isinstance(failed, Failed) and isinstance(failed.error, DeviceError)
        for config, event in over.items():
            assert isinstance(event, Finished)
            assert (event.files.outcome == "diverged") == (config == DIVERGES)
            record = write_bytes(tmp_path / "alone" / f"{key(config)}.json", event.files.result)
            alone = train(config, threads=1, weights=tmp_path / "alone" / "weights")
            assert dataset_of(read_record(record)).drop_vars("seconds").identical(alone.drop_vars("seconds"))
            assert event.files.weights == (tmp_path / "alone" / "weights").read_bytes()

    def test_closed_it_takes_no_more(self, tmp_path: Path) -> None:
        """Closing the iterator stops all workers at once."""
        store = Store(tmp_path)
        store.prepare()
        configs = Taking(tuple(replace(QUICK, seed=seed) for seed in range(20)))
        events = self.engine(store.folder)(configs)
        next(event for event in events if not isinstance(event, Advanced))
        events.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert 1 <= len(configs.taken) <= 2 * self.workers + 1
        assert next(events, None) is None
