"""Named jobs: each counted once, also when a process or a node is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safe_rl_core.errors import ModelError
from safe_rl_training.cluster import ATTEMPTS, Jobs, run_jobs

Values = dict[str, Any]
#: Loopback only, nothing reported, nothing written into the home folder, quick to miss a node.
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}


def square(job: Values) -> Values:
    """Note the run in a file, then answer."""
    with Path(job["log"]).open("a") as log:
        log.write(f"{job['x']}\n")
    time.sleep(job.get("seconds", 0.0))
    if job["x"] < 0:
        raise ModelError("x must not be negative")
    return {"square": job["x"] ** 2}


def die_once(job: Values) -> Values:
    """The first process that gets x = 1 is killed, as by the system when memory runs out."""
    mark = Path(job["log"]).with_suffix(".dead")
    if job["x"] == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def die_always(job: Values) -> Values:
    """No process survives it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def make(tmp_path: Path, count: int, function: Any = square, **more: Any) -> Jobs:
    """`count` jobs that note their runs in one file."""
    log = str(tmp_path / "log")
    jobs = {f"x={x}": {"x": x, "log": log, **more} for x in range(count)}
    return Jobs(function, jobs, tmp_path / "jobs")


def runs(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "log").read_text().split())


def test_results_come_in_the_order_of_the_jobs_and_are_kept(tmp_path: Path) -> None:
    work = make(tmp_path, 4)
    results = run_jobs(work, say=lambda _: None)
    assert list(results) == list(work.jobs)
    assert [result["square"] for result in results.values()] == [0, 1, 4, 9]
    said: list[str] = []
    assert run_jobs(work, say=said.append) == results
    assert runs(tmp_path) == ["0", "1", "2", "3"]  # nothing ran twice
    assert said == ["4 of 4 jobs are done already"]


def test_a_study_that_grew_runs_only_what_is_new(tmp_path: Path) -> None:
    run_jobs(make(tmp_path, 2), say=lambda _: None)
    assert len(run_jobs(make(tmp_path, 3), say=lambda _: None)) == 3
    assert runs(tmp_path) == ["0", "1", "2"]


def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    run_jobs(make(tmp_path, 1), say=lambda _: None)
    with pytest.raises(ModelError, match=r"x=0 with other settings"):
        run_jobs(make(tmp_path, 1, seconds=0.001), say=lambda _: None)


def test_the_others_finish_before_an_error_is_reported(tmp_path: Path) -> None:
    work = make(tmp_path, 2)
    log = str(tmp_path / "log")
    jobs = {"bad": {"x": -1, "log": log}, **work.jobs}
    with pytest.raises(ModelError, match=r"1 of 3 jobs failed:\n  bad: x must not be negative"):
        run_jobs(Jobs(square, jobs, work.store), say=lambda _: None)
    assert sorted(path.stem for path in work.store.iterdir()) == ["x=0", "x=1"]


def test_a_key_that_is_no_file_name_is_stored_all_the_same(tmp_path: Path) -> None:
    jobs = {"a/b: 1e-3": {"x": 2, "log": str(tmp_path / "log")}}
    work = Jobs(square, jobs, tmp_path / "jobs")
    assert run_jobs(work, say=lambda _: None)["a/b: 1e-3"] == {"square": 4}
    assert len(work.stored()) == 1


def test_a_killed_process_is_replaced_and_its_jobs_run_again(tmp_path: Path) -> None:
    work, said = make(tmp_path, 3, die_once), []
    results = run_jobs(work, processes=2, say=said.append)
    assert [result["square"] for result in results.values()] == [0, 1, 4]
    assert any("x=1 lost its worker" in line for line in said)
    assert json.loads((work.store / "x=1.json").read_text())["attempts"] == 2


def test_what_kills_every_process_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"lost its worker {ATTEMPTS} times"):
        run_jobs(make(tmp_path, 1, die_always), processes=2, say=lambda _: None)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of a head that takes no jobs and two nodes, all on this machine's loopback."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray")
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    # Read from the environment when ray is imported, which another test may have done.
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    small = {
        "object_store_memory": 80 * 1024**2,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        nodes = [cluster.add_node(num_cpus=1, wait=False, **small) for _ in range(2)]
        cluster.wait_for_nodes()
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_dies_loses_no_job_and_counts_none_twice(
    two_nodes: tuple[Any, list[Any]], tmp_path: Path
) -> None:
    cluster, nodes = two_nodes
    work, said = make(tmp_path, 6, seconds=1.0), []
    large = Jobs(square, work.jobs, work.store, cpus=3)
    with pytest.raises(ModelError, match=r"takes 3 cores, the largest node has 1"):
        run_jobs(large, cluster=cluster.address)
    log = tmp_path / "log"

    def kill_one_while_both_work() -> None:
        while not log.exists() or len(log.read_text().split()) < 2:
            time.sleep(0.02)
        cluster.remove_node(nodes[1], allow_graceful=False)

    killer = threading.Thread(target=kill_one_while_both_work, daemon=True)
    killer.start()
    results = run_jobs(work, cluster=cluster.address, say=said.append)
    killer.join()
    assert any("lost its worker" in line for line in said)
    assert [result["square"] for result in results.values()] == [0, 1, 4, 9, 16, 25]
    accounts = [json.loads(path.read_text()) for path in work.store.iterdir()]
    assert sorted(account["key"] for account in accounts) == list(work.jobs)
    # Every run is in the log: one per job, and one more for each worker that was lost.
    assert len(runs(tmp_path)) == sum(account["attempts"] for account in accounts) > 6
    before = runs(tmp_path)
    assert run_jobs(work, cluster=cluster.address, say=said.append) == results
    assert runs(tmp_path) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_where_nobody_answers(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ModelError, match=f"no Ray cluster answers at {address}"):
        run_jobs(make(tmp_path, 1), cluster=address, say=lambda _: None)
