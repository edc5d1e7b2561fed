"""A sweep over scikit-learn models: each is a run with its parameters, loss curve and scores."""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import icecore
from icecore.integrations.sklearn import log_estimator

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(digits.data / 16.0, digits.target, random_state=0)

for rate in (0.1, 0.01, 0.001):
    with icecore.init(project="digits-sweep", group="mlp", config={"learning_rate": rate}) as run:
        model = MLPClassifier((32,), learning_rate_init=rate, max_iter=15, n_iter_no_change=15, random_state=0)
        model.fit(x_train, y_train)
        scores = log_estimator(run, model, x_test, y_test, prefix="test/")
        print(f"{run.name}: learning rate {rate}, accuracy {scores['test/accuracy']:.3f}")

best = icecore.Api().runs("digits-sweep", order="-summary_metrics.test/accuracy")[0]
print(f"best: {best.name} with learning rate {best.config['learning_rate']}")
