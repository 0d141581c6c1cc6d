"""`RemoteSampler`: an adaptive sampler whose weights come from a service, and which goes on when the service is away.

    sampler = RemoteSampler("http://127.0.0.1:8000", labels, epochs=10)

What is special: rows are drawn here, only scores travel; and nothing stops a training. While the service is away the last weights stay and reports are kept;
once it is back they are sent in turn, so that it sees no gap. With the service there, the weights are those of an `AdaptiveSampler` of the same policy.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import ConstantPolicy
from balancer.sampling.torch_sampler import AdaptiveSampler
from balancer.sampling.weights import SamplingWeights

MAX_ROWS = 100_000
"""Scores of more rows than this are sent as histograms of two hundred bins."""
BINS = 200


class ServiceAwayWarning(UserWarning):
    """The service did not answer; sampling goes on with the last weights."""


class RemoteController:
    """Has the interface of a `SamplingController` and asks a service.

    Args:
        url: of the service.
        counts: (K,) training rows of each class, the commonest first.
        policy: by name.
        epochs: of the training.
        num_samples: rows of an epoch.
        key: API key; None: without.
        timeout: seconds for an answer.
        transport: of httpx, in place of the network.
    """

    def __init__(
        self,
        url: str,
        counts: NDArray[Any],
        policy: str,
        *,
        epochs: int,
        num_samples: int,
        key: str | None = None,
        timeout: float = 5.0,
        transport: Any = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise InputError("RemoteSampler needs httpx: install balancer with the extra serve") from error
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}: give one such as http://127.0.0.1:8000")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, transport=transport)
        self._errors: tuple[type[Exception], ...] = (httpx.TransportError,)
        # Names by place, because classes may be of any kind and the service knows texts; of equal counts the order is kept by name.
        self.names = [f"class {place:04d}" for place in range(len(counts))]
        self.prior = counts / counts.sum()
        self._request = {
            "classes": dict(zip(self.names, map(int, counts), strict=True)),
            "epochs": epochs,
            "policy": policy,
            "num_samples": num_samples,
        }
        share = ConstantPolicy().share or 0.5
        rest = self.prior[1:] / self.prior[1:].sum()
        self.weights = SamplingWeights(np.append(1 - share, share * rest), 0.0, 1.0)
        """Weights to draw the coming epoch with: until the service has answered once, those of a plain constant."""
        self.metrics = {"f1": 0.0, "average_precision": 0.0}
        """Figures of the last answer."""
        self.session: str | None = None
        """Id of the session; None while there is none."""
        self.epoch = 0
        """Epochs reported, those that still wait included."""
        self.waiting: list[dict[str, Any]] = []
        """Reports that the service has not got."""
        self._synchronise()

    @property
    def away(self) -> bool:
        """Whether the service did not answer the last time it was asked."""
        return self.session is None or bool(self.waiting)

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Report an epoch, after those that wait; the weights of the next, or the last ones where the service is away.

        Raises:
            InputError: The service refuses what it was sent.
        """
        told = {"epoch": self.epoch + 1, "reward": self._told(reward)} | ({} if train is reward else {"train": self._told(train)})
        self.waiting.append(told)
        self.epoch += 1
        try:
            self._synchronise()
        except InputError:
            self.waiting.remove(told)
            self.epoch -= 1
            raise
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; holds the session, so that a resumed training goes on with it."""
        return {
            "session": self.session,
            "epoch": self.epoch,
            "waiting": self.waiting,
            "weights": self.weights.to_dict(),
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        weights = SamplingWeights.from_dict(state["weights"])
        if len(weights.share) != len(self.prior):
            raise InputError(
                f"saved sampling weights are for {len(weights.share)} classes, this run has {len(self.prior)}; start a new run"
            )
        self.session, self.epoch, self.waiting = state["session"], int(state["epoch"]), [dict(told) for told in state["waiting"]]
        self.weights, self.metrics = weights, dict(state["metrics"])

    def _synchronise(self) -> None:
        """Begin the session if there is none, and send what waits."""
        if self.session is None:
            answer = self._post("/v1/sessions", self._request)
            if answer is None:
                return
            self.session = answer["id"]
            self._take(answer)
        while self.waiting:
            answer = self._post(f"/v1/sessions/{self.session}/epochs", self.waiting[0])
            if answer is None:
                return
            self.waiting.pop(0)
            self._take(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        share = np.array([answer["weights"][name] for name in self.names])
        self.weights, self.metrics = SamplingWeights(share, answer["hardness"], answer["floor"]), answer["metrics"]

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None, with a warning, where the service is away."""
        why = ""
        for attempt in range(2):
            try:
                answer = self._client.post(path, json=content)
            except self._errors as error:
                why = str(error) or type(error).__name__
            else:
                if answer.status_code < 300:
                    return dict(answer.json())
                why = _message(answer)
                if answer.status_code < 500 and answer.status_code != 429:
                    raise InputError(f"{self._client.base_url}: {why}")
            if attempt == 0:
                time.sleep(0.2)
        warnings.warn(
            f"the service at {self._client.base_url} is away ({why}); the last weights are kept", ServiceAwayWarning, stacklevel=2
        )
        return None

    def _told(self, rows: ScoredRows) -> dict[str, Any]:
        if len(rows.label) <= MAX_ROWS and (rows.weight is None or (rows.weight == 1).all()):
            score = np.asarray(rows.score, dtype=np.float64)
            return {"labels": [self.names[code] for code in rows.label], "scores": score.tolist()}
        error = 1.0 - np.asarray(rows.score, dtype=np.float64)[np.arange(len(rows.label)), rows.label]
        edges, counts = np.linspace(0.0, 1.0, BINS + 1), {}
        for code, name in enumerate(self.names):
            own = rows.label == code
            weight = None if rows.weight is None else rows.weight[own]
            counts[name] = np.histogram(np.clip(error[own], 0.0, 1.0), edges, weights=weight)[0].astype(float).tolist()
        return {"edges": edges.tolist(), "counts": counts}


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


class RemoteSampler(AdaptiveSampler):
    """`AdaptiveSampler` with the weights of a service.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        labels: (N,) class of each training row, as for `AdaptiveSampler`.
        epochs: how many epochs the training has.
        policy: by name: auto, bandit, constant, schedule, rule, random, start.
        num_samples: rows an epoch draws; None: as many as there are labelled rows.
        unlabelled: a label that marks rows never to be drawn.
        seed: every epoch's draw is a function of it, of the epoch's number and of the weights.
        key: API key of the scope `sessions`; None: without.
        timeout: seconds for an answer.
        rank, num_replicas: as for `AdaptiveSampler`; every rank has a session of its own, and of the same scores the same weights.
        transport: of httpx, in place of the network.

    Raises:
        InputError: As `AdaptiveSampler`, or the service refuses the key or the policy.

    Warns:
        ServiceAwayWarning: The service does not answer.
    """

    _KIND = "RemoteSampler"

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
        transport: Any = None,
    ) -> None:
        super().__init__(
            labels,
            policy="start",  # steers nothing: the controller is exchanged below
            epochs=epochs,
            num_samples=num_samples,
            unlabelled=unlabelled,
            seed=seed,
            rank=rank,
            num_replicas=num_replicas,
        )
        core: SamplerCore = self._core
        counts = core.class_counts
        self._remote = RemoteController(
            url, counts, policy, epochs=epochs, num_samples=core.num_samples, key=key, timeout=timeout, transport=transport
        )
        core.use_controller(self._remote, policy)

    @property
    def away(self) -> bool:
        """Whether the service did not answer the last time it was asked."""
        return self._remote.away

    @property
    def session(self) -> str | None:
        """Id of the session at the service; None while there is none."""
        return self._remote.session
