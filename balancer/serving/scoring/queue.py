"""The queue of a worker: requests that wait are scored and committed together.

What is special: nobody waits for a batch to fill. While one batch is scored and written, the next requests
arrive, and all of them are the next batch. So a request alone is answered at once, and many share the cost of
a transaction and of the disk. A request that fails does not fail the others of its batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from balancer.errors import InputError
from balancer.serving import tracing
from balancer.serving.errors import ConflictError
from balancer.serving.metrics import BATCH_ROWS, QUEUE_SECONDS
from balancer.serving.scoring.monitoring import ScoreMonitor
from balancer.serving.scoring.scorer import Job, Models, Scorer, ScoringResult
from balancer.serving.storage.database import UnavailableError
from balancer.serving.storage.deadline import REQUEST, Deadline

LOG = logging.getLogger("balancer.service")
MOST_ROWS = 128
"""Rows that are scored together, unless one request has more."""
_LATE = "the request waited too long to begin"

Result = ScoringResult | BaseException


@dataclass(eq=False)
class _Waiting:
    """A request in the queue."""

    tenant: str
    models: Models
    job: Job
    deadline: Deadline | None
    future: asyncio.Future[ScoringResult]
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.perf_counter)
    parents: Sequence[tracing.Parent] = field(default_factory=tracing.parents)


class ScoringQueue:
    """Scores requests in one thread, in the order in which they arrive.

    Args:
        scorer: Scores them.
        monitor: Counts them.
    """

    def __init__(self, scorer: Scorer, monitor: ScoreMonitor) -> None:
        self._scorer, self._monitor = scorer, monitor
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    async def score(self, tenant: str, models: Models, job: Job) -> ScoringResult:
        """Score a request.

        Args:
            tenant: Whose transactions.
            models: The models in service.
            job: The request.

        Raises:
            ConflictError: Its transactions contradict stored ones.
            UnavailableError: The database did not answer in time, the request could not begin in time, or the
                service stops.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(tenant, models, job, REQUEST.get(), loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise UnavailableError("the service stops")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
                self._thread.start()
            self._waiting.append(waiting)
            self._changed.notify()
        return await waiting.future

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            begun = [each for each in batch if each.deadline is None or each.deadline.begin()]
            try:
                results: list[Result] = self._scored(begun) if begun else []
            except Exception as error:  # the thread must go on, or no later request would be answered
                LOG.exception("a batch of %d requests failed", len(begun))
                results = [error] * len(begun)
            answered = list(zip(begun, results, strict=True))
            answered += [(each, UnavailableError(_LATE)) for each in batch if each not in begun]
            for loop in {each.loop for each in batch}:
                mine = [pair for pair in answered if pair[0].loop is loop]
                try:
                    loop.call_soon_threadsafe(_answer, mine)
                except RuntimeError:  # the loop has ended, and with it who asked
                    LOG.warning("answers of %d requests reached nobody, because the service was stopped", len(mine))

    def _next(self) -> list[_Waiting]:
        """Wait for requests; returns the next ones of one tenant, and none at the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            batch: list[_Waiting] = []
            rows = 0
            while self._waiting:
                each = self._waiting[0]
                if batch and (not _fits(each, batch[0]) or rows + len(each.job.rows) > MOST_ROWS):
                    break
                batch.append(self._waiting.popleft())
                rows += len(each.job.rows)
            return batch

    def _scored(self, batch: Sequence[_Waiting]) -> list[Result]:
        now = time.perf_counter()
        for each in batch:
            QUEUE_SECONDS.observe(now - each.since)
            tracing.record("queue", now - each.since, each.parents)
        BATCH_ROWS.observe(sum(len(each.job.rows) for each in batch))
        # The database may take as long as the request that has most time left.
        token = REQUEST.set(max((each.deadline for each in batch if each.deadline is not None), key=lambda one: one.end_by, default=None))
        try:
            with tracing.working_for([parent for each in batch for parent in each.parents]):
                results: list[Result] = list(self._scorer.score_many(batch[0].tenant, batch[0].models, [each.job for each in batch]))
        except UnavailableError as error:
            return [error] * len(batch)
        except Exception as error:  # one request may be the reason, so each of several gets an attempt of its own
            LOG.exception("a batch of %d requests failed", len(batch))
            if isinstance(error, InputError):  # what was sent has been checked already, so the fault is here
                error = RuntimeError(str(error))
            return [error] if len(batch) == 1 else [result for each in batch for result in self._scored([each])]
        finally:
            REQUEST.reset(token)
        try:
            for each, result in zip(batch, results, strict=True):
                if isinstance(result, ScoringResult):
                    self._monitor.add(each.models.champion, result)
        except Exception:  # the rows are stored and must be answered, whatever the metrics do
            LOG.exception("the metrics of a batch could not be counted")
        return results


def _fits(one: _Waiting, other: _Waiting) -> bool:
    """Whether two requests may be scored together."""
    mine, theirs = one.models, other.models
    same = mine.champion is theirs.champion and mine.challenger is theirs.challenger and mine.share == theirs.share
    return same and one.tenant == other.tenant


def _answer(answered: Sequence[tuple[_Waiting, Result | ConflictError]]) -> None:
    for each, result in answered:
        if each.future.done():
            continue  # who asked has gone
        if isinstance(result, BaseException):
            each.future.set_exception(result)
        else:
            each.future.set_result(result)
