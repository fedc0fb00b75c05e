"""Named jobs, on this machine or on a Ray cluster: each is counted once, whatever gets lost.

A job is a key and plain values; its result, plain values too, is stored under the key as soon as
it is there. What is stored is never run again, so an interrupted study goes on where it was. A
job whose worker was lost (killed, out of memory, node gone) is run again; one that raises is not:
the others finish first, then its error is reported.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safe_rl_core.errors import ModelError, SafeRLError
from safe_rl_core.progress import Progress

Values = dict[str, Any]
Function = Callable[[Values], Values]
#: How often a job may lose its worker.
ATTEMPTS = 4
#: Of a Ray that is started here; results are small.
_OBJECT_STORE = 100 * 1024**2


@dataclass(frozen=True)
class Jobs:
    """What there is to do, where results are kept, and what one job takes."""

    function: Function
    jobs: Mapping[str, Values]
    store: Path
    cpus: int = 1

    def stored(self) -> dict[str, Values]:
        """Results that are there already; raises if one belongs to another job."""
        found = {}
        for key, job in self.jobs.items():
            path = self._path(key)
            if not path.is_file():
                continue
            account = json.loads(path.read_text())
            if account["job"] != json.loads(json.dumps(job)):
                raise ModelError(
                    f"{path} holds the result of {key} with other settings; use another folder, "
                    "or the same settings"
                )
            found[key] = account["result"]
        return found

    def keep(self, key: str, result: Values, attempts: int) -> Values:
        """Store a result; returns it as it will be read again."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        account = {"key": key, "job": self.jobs[key], "attempts": attempts, "result": result}
        text = json.dumps(account, indent=1, sort_keys=True)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(path)
        return json.loads(text)["result"]

    def _path(self, key: str) -> Path:
        return self.store / f"{quote(key, safe='=,+')}.json"


def run_jobs(
    work: Jobs,
    cluster: str | None = None,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Values]:
    """Results by key, in the order of the jobs.

    `cluster`: None for this machine, in so many `processes` (1: in this one); "local" for a Ray
    that is started on this machine; else the address of a Ray cluster.
    """
    results = work.stored()
    if results:
        say(f"{len(results)} of {len(work.jobs)} jobs are done already")
    left = [key for key in work.jobs if key not in results]
    failed: dict[str, str] = {}
    progress = Progress("jobs", len(left))

    def done(key: str, outcome: Values, attempts: int) -> None:
        if "error" in outcome:
            failed[key] = outcome["error"]
        else:
            results[key] = work.keep(key, outcome["result"], attempts)
        progress.advance(key)

    if left:
        if cluster is not None:
            _on_ray(work, left, cluster, done, say)
        elif processes > 1:
            _in_processes(work, left, processes, done, say)
        else:
            for key in left:
                done(key, guarded(work.function, work.jobs[key]), 1)
        progress.close()
    if failed:
        reasons = "\n".join(f"  {key}: {reason}" for key, reason in failed.items())
        raise ModelError(f"{len(failed)} of {len(work.jobs)} jobs failed:\n{reasons}")
    return {key: results[key] for key in work.jobs}


def guarded(function: Function, job: Values) -> Values:
    """{"result": …}, or {"error": …} for what safe_rl raises on purpose; runs on the worker."""
    try:
        return {"result": function(job)}
    except SafeRLError as error:
        return {"error": str(error)}


class _Attempts:
    """Counts the workers that each job had, and says when one was lost."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._count: dict[str, int] = {}
        self._say = say

    def begin(self, key: str) -> None:
        self._count[key] = self._count.get(key, 0) + 1

    def of(self, key: str) -> int:
        return self._count[key]

    def lost(self, key: str, reason: str) -> None:
        if self._count[key] >= ATTEMPTS:
            raise ModelError(f"{key} lost its worker {ATTEMPTS} times, the last time: {reason}")
        self._say(f"{key} lost its worker ({reason}) and starts again")


def _in_processes(
    work: Jobs,
    left: list[str],
    processes: int,
    done: Callable[[str, Values, int], None],
    say: Callable[[str], None],
) -> None:
    attempts, left = _Attempts(say), list(left)
    while left:
        # Not forked: torch's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(left)), context) as pool:
            pending: dict[Future[Values], str] = {}
            try:
                for key in left:
                    attempts.begin(key)
                    pending[pool.submit(guarded, work.function, work.jobs[key])] = key
                while pending:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        key = pending.pop(future)
                        done(key, outcome, attempts.of(key))
                        left.remove(key)
            except BrokenProcessPool as error:
                # All that were in work are lost with it, without a word which one was the cause.
                for key in left:
                    attempts.lost(key, str(error).partition(" while")[0])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _on_ray(
    work: Jobs,
    left: list[str],
    address: str,
    done: Callable[[str, Values, int], None],
    say: Callable[[str], None],
) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise ModelError("--ray needs Ray: pip install 'safe_rl_training[ray]'") from None
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        _check_room(ray, work.cpus)
        attempts = _Attempts(say)
        # Ray's own retries are off: they would hide how often a job was run.
        remote = ray.remote(num_cpus=work.cpus, max_retries=0)(guarded)

        def submit(key: str) -> Any:
            attempts.begin(key)
            return remote.remote(work.function, work.jobs[key])

        pending = {submit(key): key for key in left}
        while pending:
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                key = pending.pop(reference)
                try:
                    outcome = ray.get(reference)
                except RayTaskError:
                    raise  # a defect: it keeps its traceback
                except RayError as error:
                    attempts.lost(key, type(error).__name__)
                    pending[submit(key)] = key
                else:
                    done(key, outcome, attempts.of(key))
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if address == "local":
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        _reach(address)
        ray.init(address=address)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head` "
            "and give its address, or leave the address out to run on this machine"
        ) from error


def _reach(address: str) -> None:
    """OSError at once where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()


def _check_room(ray: Any, cpus: int) -> None:
    """A job that fits on no node would wait for ever."""
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if largest < cpus:
        raise ModelError(
            f"one job takes {cpus} cores, the largest node has {largest:.0f}; lower --threads"
        )
