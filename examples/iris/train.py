"""Train a classifier of irises, and put its samples aside: to train on, to calibrate with, to evaluate on. No flower is in two of them.

python train.py         # writes iris.skops, calibration.npz and evaluation.npz
"""

import numpy as np
import skops.io
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

iris = load_iris()
flowers = iris.data.astype(np.float32)  # four lengths in cm each
species = iris.target_names[iris.target]

training, others, training_species, other_species = train_test_split(flowers, species, train_size=90, stratify=species, random_state=0)
calibration, evaluation, _, evaluation_species = train_test_split(others, other_species, train_size=20, stratify=other_species, random_state=0)

classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(training, training_species)

skops.io.dump(classifier, "iris.skops")
np.savez("calibration.npz", input=calibration)
np.savez("evaluation.npz", input=evaluation, labels=evaluation_species)
print(f"{classifier.score(evaluation, evaluation_species):.3f} of {len(evaluation)} flowers that it was not trained on are named right")
