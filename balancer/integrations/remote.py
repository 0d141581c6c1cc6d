"""`RemoteSampler`: an adaptive sampler whose weights come from a balancer service.

    sampler = RemoteSampler("http://127.0.0.1:8000", labels, epochs=10)

Rows are drawn in this process; only scores are sent. With the same policy the weights are those of an
`AdaptiveSampler`.

Training does not stop when the service does not answer: the last weights are kept, and the scores of each
epoch are stored. They are sent in order when the service answers again, so it receives every epoch.
"""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.dependencies import require
from balancer.errors import InputError
from balancer.sampling.constant_policy import DEFAULT_SHARE
from balancer.sampling.observation import ScoredRows
from balancer.sampling.sampler_base import SamplerBase
from balancer.sampling.torch_sampler import AdaptiveSampler
from balancer.sampling.weights import SamplingWeights

MAX_ROWS = 100_000
"""Scores of more rows than this are sent as histograms."""
BINS = 200
"""Bins of a histogram."""


class ServiceAwayWarning(UserWarning):
    """The service did not answer. Sampling continues with the last weights."""


class RemoteController:
    """A controller with the interface of `SamplingController` that gets the weights from a service.

    Args:
        url: Address of the service.
        counts: (K,) training rows of each class, the most frequent class first.
        policy: Name of the policy.
        epochs: Epochs of the training.
        num_samples: Rows of an epoch.
        compensated: Whether drawn rows are counted by the sampler's loss.
        key: API key, if the service needs one.
        timeout: Seconds to wait for an answer.
        transport: Transport of httpx, for tests without a network.

    Raises:
        MissingDependencyError: httpx is not installed.
        InputError: ``url`` is no HTTP address, or the service rejects the request.
    """

    def __init__(
        self,
        url: str,
        counts: NDArray[Any],
        policy: str,
        *,
        epochs: int,
        num_samples: int,
        compensated: bool = False,
        key: str | None = None,
        timeout: float = 5.0,
        transport: Any = None,
    ) -> None:
        require("httpx", "RemoteSampler")
        import httpx

        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}: give an HTTP address such as http://127.0.0.1:8000")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, transport=transport)
        weakref.finalize(self, self._client.close)  # otherwise its connection stays open until the process ends
        self._errors: tuple[type[Exception], ...] = (httpx.TransportError,)
        # The service takes class names as text, so classes are numbered. Classes of equal size keep their
        # order by name.
        self.names = [f"class {place:04d}" for place in range(len(counts))]
        self.prior = counts / counts.sum()
        self._request = {
            "classes": dict(zip(self.names, map(int, counts), strict=True)),
            "epochs": epochs,
            "policy": policy,
            "num_samples": num_samples,
        }
        if compensated:
            self._request["compensated"] = True
        self.compensated = compensated
        """Whether drawn rows are counted by the sampler's loss; it has an effect from the next update on."""
        rest = self.prior[1:] / self.prior[1:].sum()
        self.weights = SamplingWeights(np.append(1 - DEFAULT_SHARE, DEFAULT_SHARE * rest), 0.0, 1.0)
        """Weights of the next epoch; before the first answer those of a constant without hardness."""
        self.metrics = {"f1": 0.0, "average_precision": 0.0}
        """Validation metrics of the last answer."""
        self.session: str | None = None
        """Id of the session at the service; None until it is created."""
        self.epoch = 0
        """Number of updates, including those that have not been sent yet."""
        self.pending: list[dict[str, Any]] = []
        """Reports that have not been sent yet."""
        self._synchronize()

    def __repr__(self) -> str:
        """Address, session, and number of updates and of pending reports."""
        url = str(self._client.base_url)
        return f"RemoteController({url!r}, session={self.session!r}, updates={self.epoch}, pending={len(self.pending)})"

    @property
    def away(self) -> bool:
        """Whether the service did not answer the last request."""
        return self.session is None or bool(self.pending)

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Send the scores of an epoch, after those that are pending.

        Args:
            train: Scored training rows.
            reward: Scored validation rows. The same object as ``train`` if no training rows were scored.

        Returns:
            The weights of the next epoch, or the last weights if the service does not answer.

        Raises:
            InputError: The service rejects the scores; nothing has changed then.
        """
        report = {"epoch": self.epoch + 1, "reward": self._encoded(reward)}
        if train is not reward:
            report["train"] = self._encoded(train)
        if self.compensated:  # services of version 0.1 don't know it
            report["compensated"] = True
        self.pending.append(report)
        self.epoch += 1
        try:
            self._synchronize()
        except InputError:
            self.pending.remove(report)
            self.epoch -= 1
            raise
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        """State as values that JSON can hold.

        It contains the session's id, so a resumed training continues the session.
        """
        return {
            "session": self.session,
            "epoch": self.epoch,
            "waiting": self.pending,  # the key of version 0.1
            "weights": self.weights.to_dict(),
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; raise InputError if it has another number of classes."""
        weights = SamplingWeights.from_dict(state["weights"])
        if len(weights.share) != len(self.prior):
            raise InputError(
                f"saved sampling weights are for {len(weights.share)} classes, this run has {len(self.prior)}; start a new run"
            )
        self.session, self.epoch, self.pending = state["session"], int(state["epoch"]), [dict(report) for report in state["waiting"]]
        self.weights, self.metrics = weights, dict(state["metrics"])

    def _synchronize(self) -> None:
        """Create the session if there is none, and send the pending reports."""
        if self.session is None:
            answer = self._post("/v1/sessions", self._request)
            if answer is None:
                return
            self.session = answer["id"]
            self._take(answer)
        while self.pending:
            answer = self._post(f"/v1/sessions/{self.session}/epochs", self.pending[0])
            if answer is None:
                return
            self.pending.pop(0)
            self._take(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        share = np.array([answer["weights"][name] for name in self.names])
        importance = (answer.get("class_importance", 0.0), answer.get("hardness_importance", 0.0))
        half_life = math.inf if answer.get("half_life") is None else answer["half_life"]
        self.weights = SamplingWeights(share, answer["hardness"], answer["floor"], *importance, half_life)
        self.metrics = answer["metrics"]

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """Send a request.

        Returns:
            The answer; None, with a warning, if the service does not answer.

        Raises:
            InputError: The service rejects the request.
        """
        reason = ""
        for attempt in range(2):
            try:
                answer = self._client.post(path, json=content)
            except self._errors as error:
                reason = str(error) or type(error).__name__
            else:
                if answer.status_code < 300:
                    return dict(answer.json())
                reason = _message(answer)
                if answer.status_code < 500 and answer.status_code != 429:
                    raise InputError(f"{self._client.base_url}: {reason}")
            if attempt == 0:
                time.sleep(0.2)
        warnings.warn(
            f"the service at {self._client.base_url} does not answer ({reason}); the last weights are kept",
            ServiceAwayWarning,
            stacklevel=2,
        )
        return None

    def _encoded(self, rows: ScoredRows) -> dict[str, Any]:
        """Scored rows as JSON: labels and scores.

        Many rows or weighted rows become histograms of the error by class.
        """
        if len(rows.label) <= MAX_ROWS and (rows.weight is None or (rows.weight == 1).all()):
            score = np.asarray(rows.score, dtype=np.float64)
            return {"labels": [self.names[code] for code in rows.label], "scores": score.tolist()}
        error = 1.0 - np.asarray(rows.score, dtype=np.float64)[np.arange(len(rows.label)), rows.label]
        edges, counts = np.linspace(0.0, 1.0, BINS + 1), {}
        for code, name in enumerate(self.names):
            of_class = rows.label == code
            weight = None if rows.weight is None else rows.weight[of_class]
            counts[name] = np.histogram(np.clip(error[of_class], 0.0, 1.0), edges, weights=weight)[0].astype(float).tolist()
        return {"edges": edges.tolist(), "counts": counts}


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


class RemoteSampler(AdaptiveSampler):
    """An `AdaptiveSampler` with weights from a service.

    Args:
        url: Address of the service, such as http://127.0.0.1:8000.
        labels: (N,) class of each training row, as for `AdaptiveSampler`.
        epochs: Number of epochs of the training.
        policy: Name of a policy: auto, ppo, bandit, constant, schedule, rule, random, start.
        num_samples: Rows to draw in an epoch; None: as many as there are labelled rows.
        unlabelled: Label of rows that are never drawn.
        seed: Random seed. The rows of an epoch depend on the seed, the number of the epoch and the weights
            only.
        key: API key with the scope `sessions`, if the service needs one.
        timeout: Seconds to wait for an answer.
        times: As for `AdaptiveSampler`.
        compensated: As for `AdaptiveSampler`. A session is begun with the sampler, so give True for a first
            epoch that is drawn for the sampler's loss.
        patience: As for `AdaptiveSampler`.
        rank: As for `AdaptiveSampler`. Every rank has its own session; the same scores give the same weights.
        num_replicas: As for `AdaptiveSampler`.
        transport: Transport of httpx, for tests without a network.

    Raises:
        MissingDependencyError: httpx is not installed.
        InputError: As for `AdaptiveSampler`, or the service rejects the key or the policy.

    Warns:
        ServiceAwayWarning: The service does not answer.
    """

    _KIND = "RemoteSampler"

    _EXACT = True  # the service counts scores on a coarser grid of its own

    def __init__(
        self,
        url: str,
        labels: ArrayLike | Sequence[str],
        *,
        epochs: int,
        policy: str = "auto",
        num_samples: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
        key: str | None = None,
        timeout: float = 5.0,
        rank: int | None = None,
        num_replicas: int | None = None,
        times: ArrayLike | None = None,
        compensated: bool | None = None,
        patience: int | None = None,
        transport: Any = None,
    ) -> None:
        super().__init__(
            labels,
            policy="start",  # not used: the controller is replaced below
            epochs=epochs,
            num_samples=num_samples,
            unlabelled=unlabelled,
            seed=seed,
            rank=rank,
            num_replicas=num_replicas,
            times=times,
            compensated=compensated,
            patience=patience,
        )
        core: SamplerBase = self._core
        self._remote = core.use_controller(
            lambda counts: RemoteController(
                url,
                counts,
                policy,
                epochs=epochs,
                num_samples=core.num_samples,
                compensated=core.compensated,
                key=key,
                timeout=timeout,
                transport=transport,
            ),
            policy,
        )

    def __repr__(self) -> str:
        """As of `AdaptiveSampler`, with the session and whether the service answers."""
        return f"{super().__repr__()[:-1]}, session={self.session!r}, away={self.away})"

    @property
    def away(self) -> bool:
        """Whether the service did not answer the last request."""
        return self._remote.away

    @property
    def session(self) -> str | None:
        """Id of the session at the service; None until it is created."""
        return self._remote.session
