"""Ask the agent which iris this is.

python ask.py                       # a flower of each kind
python ask.py 5.9 3.0 5.1 1.8       # your own: sepal length and width, petal length and width, in cm
"""

import sys

import numpy as np

from edge_agent import connect

FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.0, 2.7, 4.2, 1.3], [6.5, 3.0, 5.8, 2.2]]

flowers = [[float(length) for length in sys.argv[1:]]] if sys.argv[1:] else FLOWERS

with connect("iris") as model:
    answers = model(np.array(flowers, np.float32))

for lengths, species, probabilities in zip(flowers, answers["label"], answers["probabilities"], strict=True):
    print(f"{lengths} cm: {species}, {probabilities.max():.0%}")
