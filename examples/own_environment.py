"""An environment with a student of your own, and PPO.

`StudentTask` puts any model into the Gymnasium environment: an episode is one training, a step is one
epoch, an action changes the sampling weights, and the return is the validation figure of the best epoch.
The student here is a logistic regression in NumPy. PPO of Stable-Baselines3 learns from 128 short
trainings.

What to see: the mean return of PPO on new students, beside that of two simple rules: keep the first
weights, or move at random. The first weights suit most tables, so PPO can gain little here: compare the
difference with the standard errors. The package keeps a learned policy only where it is clearly better than
the constant.

    pip install 'balancer[train]' altair vl-convert-python
    python examples/own_environment.py
"""

import altair as alt
import numpy as np
from stable_baselines3 import PPO

from balancer.envs.class_weights import ClassWeightsEnv, StudentTask

rng = np.random.default_rng(0)
y = (rng.random(4000) < 0.04).astype(np.int64)
x = rng.normal(size=(4000, 4)) + 1.1 * y[:, None]
x[:, 0] *= np.where(y == 1, 2.0, 1.0)


class Logistic:
    """Logistic regression by gradient descent."""

    def __init__(self, seed):
        self.w, self.b = np.random.default_rng(seed).normal(size=4) * 0.3, 0.0

    def fit(self, rows, weight, logit_offset):
        for part in np.array_split(np.arange(len(rows)), 15):
            i = rows[part]
            logit = x[i] @ self.w + self.b + logit_offset[1] - logit_offset[0]  # the offset only in training
            error = weight[part] * (1 / (1 + np.exp(-logit)) - y[i])
            self.w -= 0.3 * x[i].T @ error / len(i)
            self.b -= 0.3 * error.mean()

    def score(self, rows):
        p = 1 / (1 + np.exp(-(x[rows] @ self.w + self.b)))
        return np.stack([1 - p, p], axis=1)


train, reward = np.arange(2500), np.arange(2500, 4000)
task = StudentTask(y, train, reward, 2, np.ones(2500), np.ones(1500), lambda seed, steps: Logistic(seed))
env = ClassWeightsEnv(task, epochs=4, steps_per_epoch=8, reward="average_precision")
agent = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=5, gamma=1.0, learning_rate=1e-3, seed=0, device="cpu")
agent.learn(512)
print(f"PPO learned from {agent.num_timesteps} epochs, {agent.num_timesteps // 4} trainings")

random = np.random.default_rng(1)
ways = {
    "first weights": lambda observation: np.zeros(6, np.float32),
    "random moves": lambda observation: random.uniform(-1, 1, 6).astype(np.float32),
    "PPO": lambda observation: agent.predict(observation, deterministic=True)[0],
}
returns = []
for name, act in ways.items():
    observation, info = env.reset(seed=1000)  # the same new students for each way
    totals = []
    for _ in range(30):
        total, done = 0.0, False
        while not done:
            observation, paid, done, _, info = env.step(act(observation))
            total += paid
        totals.append(total)
        observation, _ = env.reset()
    error = np.std(totals) / np.sqrt(len(totals))
    print(f"{name:14} mean return {np.mean(totals):.4f}, standard error {error:.4f}; last share of positives {info['share'][1]:.2f}")
    returns += [{"way": name, "return": total} for total in totals]

alt.Chart(alt.Data(values=returns)).mark_tick(thickness=2).encode(
    x=alt.X("return:Q").title("return: average precision of the best epoch").scale(zero=False),
    y=alt.Y("way:N").title(None).sort(None),
).properties(width=300, height=120).save("own_environment.svg")
