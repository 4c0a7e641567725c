"""`submit`, `jobs`, `logs`, `stop`, and `check --address`."""

import argparse
import json
import os
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.pipeline.cluster.client import STOP_WAIT_S, Jobs, find_address, has_ended, status_of
from stillhouse.pipeline.cluster.package import package
from stillhouse.pipeline.cluster.preflight import Judgement, requirements
from stillhouse.pipeline.cluster.probe import MARK
from stillhouse.pipeline.cluster.several import judge_all
from stillhouse.pipeline.cluster.submission import (
    CONFIG_HASH,
    PREFIX,
    RUN_DIR,
    Submission,
    is_of,
    next_id,
    require_shared_name,
    requirements_of,
)
from stillhouse.pipeline.console import message
from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.look.check import show as show_check
from stillhouse.pipeline.run.progress import duration
from stillhouse.pipeline.run.ray_pool import RAYS_LINES
from stillhouse.schemas.config import Config, ConfigError, config_hash

Result = tuple[dict[str, Any], int]

PROBE_TIMEOUT_S = 600.0
"""A node's image may have to be fetched, and an environment made."""
PROBE_PREFIX = f"{PREFIX}preflight-"
CODES = {"SUCCEEDED": 0, "STOPPED": 130}
NOT_OF_THE_RUN = re.compile(RAYS_LINES + r"|^Running entrypoint for job |^\d{4}-\d\d-\d\d [\d:,]+\t[A-Z]+ ")
"""Lines of a job's log that Ray writes into it."""


def submit(config: Config, arguments: argparse.Namespace) -> Result:
    """Exit code: the run's own. 1 where the pre-flight says that it would fail, 130 where the terminal was left."""
    until = arguments.until
    if until is not None:
        flow.require_end(config, until)
    submission, cluster = _prepare(config, arguments)
    if (running := _running(cluster, config)) is not None:
        message(f"{running.submission_id}: is running already; this command follows it")
        return _follow(cluster, running.submission_id, arguments)
    if not arguments.no_preflight:
        judgement, facts = _preflight(cluster, submission, arguments)
        _show(judgement, facts, config.task)
        if judgement.problems:
            raise RunError("nothing was submitted; --no-preflight submits all the same")
    asked = ["--retry-set-aside"] * arguments.retry_set_aside + (["--until", until] if until is not None else [])
    entrypoint = submission.entrypoint("stillhouse run", *asked)
    submission_id = next_id(config.run_dir, [job.submission_id for job in cluster.jobs()])
    travels = f"{submission.package.num_bytes / 2**20:.1f} MiB in {submission.package.num_files:,} files"
    message(f"{submission_id}: {travels} travel from {submission.package.folder}; the same by Ray's own command:")
    message(f"  {submission.line(cluster.address, submission_id, entrypoint)}")
    if not cluster.submit(entrypoint, submission_id, submission.runtime_env(), submission.metadata):
        message(f"{submission_id}: another command has submitted it meanwhile; this one follows it")
    return _follow(cluster, submission_id, arguments)


def check(config: Config, arguments: argparse.Namespace) -> Result:
    """Exit code 1 where a run would fail."""
    submission, cluster = _prepare(config, arguments)
    judgement, facts = _preflight(cluster, submission, arguments)
    _show(judgement, facts, config.task)
    result = {"problems": judgement.problems, "notes": judgement.notes, "plan": judgement.plan}
    return result | {"check": facts.get("check"), "nodes": facts.get("nodes", [])}, int(bool(judgement.problems))


def jobs(arguments: argparse.Namespace) -> Result:
    """Every job with an id of ours, the newest first."""
    cluster = Jobs(find_address(arguments.address))
    found = [_described(job) for job in cluster.jobs() if _is_ours(job)]
    for job in found:
        started = datetime.fromtimestamp(job["started"] or 0).isoformat(" ", "minutes")
        message(f"{job['job']}  {job['state']:9}  {started}  {job['run_dir'] or ''}")
    if not found:
        message(f"no jobs at {cluster.address}")
    return {"jobs": found}, 0


def logs(arguments: argparse.Namespace) -> Result:
    cluster = Jobs(find_address(arguments.address))
    job = _find(cluster, arguments.job)
    if has_ended(job):
        log = cluster.log(job.submission_id)
        message(log.rstrip("\n"))
        return {**_described(job), "log": log}, 0
    arguments.detach = False
    return _follow(cluster, job.submission_id, arguments)


def stop(arguments: argparse.Namespace) -> Result:
    """Returns when the job has ended."""
    cluster = Jobs(find_address(arguments.address))
    job = _find(cluster, arguments.job)
    if has_ended(job):
        message(f"{job.submission_id}: has ended already ({status_of(job).lower()})")
        return _described(job), 0
    cluster.stop(job.submission_id)
    message(f"{job.submission_id}: told to end; Ray kills it if it has not in {STOP_WAIT_S} s")
    job = cluster.wait(job.submission_id, STOP_WAIT_S + 30)
    if not has_ended(job):
        raise RunError(f"{job.submission_id}: has not ended in {STOP_WAIT_S + 30} s; look into the head's Ray logs")
    message(
        f"{job.submission_id}: {status_of(job).lower()}; every shard that is finished stays, those that were under "
        "way are made again: submit the same configuration to go on"
    )
    return _described(job), 0


def _prepare(config: Config, arguments: argparse.Namespace) -> tuple[Submission, Jobs]:
    """What needs no cluster is refused before one is asked."""
    require_shared_name(arguments.config, arguments.set)
    if missing := [name for name in arguments.env if name not in os.environ]:
        raise ConfigError(f"--env {missing[0]}: is not set here; export it first, or leave it out")
    folder = Path(arguments.working_dir)
    lock = requirements_of(arguments.runtime_env, folder)
    address = find_address(arguments.address)
    travels = package(folder, Path(arguments.config))
    sample = getattr(arguments, "sample", None)
    submission = Submission(config, arguments.config, arguments.set, travels, lock, tuple(arguments.env), sample)
    return submission, Jobs(address)


def _preflight(
    cluster: Jobs, submission: Submission, arguments: argparse.Namespace
) -> tuple[Judgement, dict[str, Any]]:
    """As a job of its own, which is gone afterwards."""
    entrypoint = submission.entrypoint(
        "stillhouse.pipeline.cluster.probe",
        *("--rows", str(arguments.rows), "--tokens-per-second", str(arguments.tokens_per_second)),
        *("--requirements", json.dumps(requirements())),
    )
    submission_id = f"{PROBE_PREFIX}{secrets.token_hex(6)}"
    message(f"looking at the cluster at {cluster.address}")
    cluster.submit(entrypoint, submission_id, submission.runtime_env(), {})
    try:
        job = cluster.wait(submission_id, PROBE_TIMEOUT_S)
        log = cluster.log(submission_id)
    finally:
        cluster.stop(submission_id)
        cluster.delete(submission_id)
    lines = [line for line in log.splitlines() if line.startswith(MARK)]
    if not lines:
        return Judgement([_unanswered(job, log)], [], {}), {}
    facts = json.loads(lines[-1].removeprefix(MARK))
    return judge_all(submission.config, facts), facts


def _unanswered(job: Any, log: str) -> str:
    """Why the pre-flight has found nothing, as far as its log says; it has read no prompt by then."""
    last = next((line for line in reversed(log.splitlines()) if re.match(r"\w+Error\b|.*No module named", line)), "")
    if "No module named" in last:
        return (
            f"the cluster's Python cannot begin: {last.strip()}; install the lock in the nodes' image "
            "(requirements/gpu.txt), or submit with --runtime-env gpu"
        )
    if not has_ended(job):
        return f"the cluster has not answered within {PROBE_TIMEOUT_S:.0f} s; look at its dashboard"
    reason = last or next(iter((job.message or "").splitlines()), "") or "no reason given"
    return f"the cluster cannot run a small job: {reason[:300]}; look at its dashboard"


def _show(judgement: Judgement, facts: dict[str, Any], task: str) -> None:
    if "check" in facts:
        show_check({**facts["check"], "notes": [], "problems": []})
    if plan := judgement.plan:
        later = f", up to {plan['max_replicas']}" if plan["max_replicas"] != plan["replicas"] else ""
        hours = plan.get("max_hours")
        text = f"cluster: nodes: {plan['nodes']}; replicas of the teacher that fit: {plan['replicas']}{later}"
        text += f"; at most {duration(hours * 3600)} for {task}" if hours is not None else ""
        message(text + (f" and {plan['max_bytes'] / 1e9:,.2f} GB" if "max_bytes" in plan else ""))
    for note in judgement.notes:
        message(f"note: {note}")
    for problem in judgement.problems:
        message(f"a run would fail: {problem}")


def _running(cluster: Jobs, config: Config) -> Any:
    """The job of this run that has not ended; None if there is none. Raises `ConfigError` where it is of another
    configuration."""
    for job in cluster.jobs():
        if is_of(job.submission_id, config.run_dir) and not has_ended(job):
            theirs = (job.metadata or {}).get(CONFIG_HASH)
            if theirs not in (None, config_hash(config)):
                raise ConfigError(
                    f"run_dir {config.run_dir}: {job.submission_id} is running there with other values of keys that "
                    "decide the data; choose another run_dir, or stop it first"
                )
            return job
    return None


def _follow(cluster: Jobs, submission_id: str, arguments: argparse.Namespace) -> Result:
    """Until the job has ended, or the terminal is left."""
    again = f"stillhouse {{}} {submission_id} --address {cluster.address}"
    if arguments.detach:
        message(f"{submission_id}: goes on without this terminal; {again.format('logs')} follows it")
        return _described(cluster.job(submission_id)), 0
    is_whole = arguments.verbose

    def say(line: str) -> None:
        if is_whole or not NOT_OF_THE_RUN.search(line):
            message(line)

    try:
        job = cluster.follow(submission_id, say)
    except KeyboardInterrupt:
        message(
            f"{submission_id}: goes on without this terminal; {again.format('logs')} follows it, "
            f"{again.format('stop')} ends it"
        )
        return {"job": submission_id, "state": "RUNNING"}, 130
    message(f"{submission_id}: {status_of(job).lower()}")
    code = job.driver_exit_code
    result = _described(job)
    return result, CODES.get(status_of(job), code if code in (1, 2, 3, 130) else 1)


def _find(cluster: Jobs, named: str) -> Any:
    """The newest job of a run folder, or the job of that id. Raises `ConfigError` where there is none."""
    folder = named if "://" in named else str(Path(named).expanduser().absolute())
    for job in cluster.jobs():
        if job.submission_id == named or is_of(job.submission_id, folder):
            return job
    raise ConfigError(f"{named}: {cluster.address} has no such job, nor one of that run folder; see `stillhouse jobs`")


def _is_ours(job: Any) -> bool:
    return job.submission_id.startswith(PREFIX) and not job.submission_id.startswith(PROBE_PREFIX)


def _described(job: Any) -> dict[str, Any]:
    return {
        "job": job.submission_id,
        "state": status_of(job),
        "run_dir": (job.metadata or {}).get(RUN_DIR),
        "started": job.start_time and job.start_time / 1000,
        "ended": job.end_time and job.end_time / 1000,
        "exit_code": job.driver_exit_code,
    }
