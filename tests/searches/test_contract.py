"""The sweeper keeps the contract that Hydra's own suites check, and Hydra finds it without being told."""

from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.extra.pytest_plugin import (  # noqa: F401  # fixtures of the suites
    hydra_restore_singletons,
    hydra_sweep_runner,
    hydra_task_runner,
)
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.test_utils.test_utils import TSweepRunner
from omegaconf import DictConfig

from hydra_plugins.marble_sweeper.smallest_sweeper import SmallestSweeper

# The suites' own programs do not say which version of Hydra they were written for, and use what is older than it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working dir:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*register_new_resolver\(\) is deprecated:UserWarning"),
]

SWEEPER = "hydra/sweeper=smallest_schema"


def test_discovered() -> None:
    assert SmallestSweeper.__name__ in [sweeper.__name__ for sweeper in Plugins.instance().discover(Sweeper)]


def test_launched_jobs_return_their_values(hydra_sweep_runner: TSweepRunner, tmpdir: Any) -> None:  # noqa: F811
    def task(config: DictConfig) -> Any:
        return config.foo * 2

    sweep = hydra_sweep_runner(
        calling_file=None,
        calling_module="hydra.test_utils.a_module",
        config_path="configs",
        config_name="compose.yaml",
        task_function=task,
        overrides=[SWEEPER, "hydra/launcher=basic", "foo=1,2"],
        temp_dir=tmpdir,
    )
    with sweep:
        assert sweep.returns is not None
        assert [job.return_value for job in sweep.returns[0]] == [2, 4]


@pytest.mark.parametrize("launcher_name", ["basic"])
@pytest.mark.parametrize("overrides", [[SWEEPER]])
class TestLauncher(LauncherTestSuite):
    """One batch."""


@pytest.mark.parametrize("launcher_name", ["basic"])
@pytest.mark.parametrize("overrides", [[SWEEPER, "hydra.sweeper.max_batch_size=2"]])
class TestBatches(BatchedSweeperTestSuite):
    """Several batches."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", SWEEPER, "hydra/launcher=basic"])],
)
class TestApps(IntegrationTestSuite):
    """Whole programs, started as processes."""
