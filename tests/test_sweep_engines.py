"""The contract of engines, on this machine's and on one that somebody would write in five lines."""

from pathlib import Path

import pytest

from normscope.errors import NormscopeError
from normscope.sweeps.engines.engine import Engine, Failed, Finished
from normscope.sweeps.engines.local import local_engine
from normscope.sweeps.run import run
from normscope.sweeps.store import Store
from normscope.testing.engines import EngineTestCase

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


class TestLocalEngine(EngineTestCase):
    def engine(self, folder: Path) -> Engine:
        return local_engine(Store(folder), workers=self.workers)


class TestEngineOfThisProcess(EngineTestCase):
    workers = 1

    def engine(self, folder: Path) -> Engine:
        def engine(configs):
            for config in configs:
                try:
                    yield Finished(config, run(config, checkpoint=None))
                except NormscopeError as error:
                    yield Failed(config, error)

        return engine
