"""Counts and times in Prometheus' format, of this server alone."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from omni.server.worker import Job, Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What /metrics shows."""

    def __init__(self, worker: Worker, sessions: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        prefix = "muomni_"
        self._requests = Counter(prefix + "requests", "Requests answered", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            prefix + "request_seconds", "From the head to the end of the answer", ["path"], buckets=SECONDS, registry=self.registry
        )
        self._stages = Histogram(
            prefix + "stage_seconds", "From acceptance to a stage of the work", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self._tokens = Counter(prefix + "tokens", "Tokens read and made", ["kind"], registry=self.registry)
        self._rounds = Gauge(prefix + "worker_rounds", "Rounds of the worker since it began", registry=self.registry)
        self._jobs = Gauge(prefix + "jobs", "Requests in the worker", ["state"], registry=self.registry)
        self._jobs.labels("running").set_function(lambda: len(worker.running))
        self._jobs.labels("waiting").set_function(lambda: worker.n_waiting)
        self._rounds.set_function(lambda: worker.n_rounds)
        Gauge(prefix + "realtime_sessions", "Realtime conversations that are open", registry=self.registry).set_function(sessions)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """One more request; `path` is a route's, so that there are few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def done(self, job: Job) -> None:
        """One more job that ended well."""
        for stage, seconds in job.marks.items():
            self._stages.labels(stage).observe(seconds)
        if job.prompt is not None:
            self._tokens.labels("prompt").inc(len(job.prompt.rendered.input_ids))
        self._tokens.labels("reply").inc(job.n_tokens)
        self._tokens.labels("speech").inc(job.n_frames)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
