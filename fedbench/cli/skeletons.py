"""The texts of new plug-ins, which keep the contract as they are. `fedbench new` writes them."""

from __future__ import annotations

from fedbench.plan.plugins import Kind

METHOD = '''\
"""NAME: say in one sentence what clients train and what the server does.

Source: authors, year, arXiv number; name what differs from the paper or its code.
"""

from dataclasses import dataclass

from fedbench import method
from fedbench.method import Param, linear_head, option, tokens


@dataclass(frozen=True)
class Method(method.Method):
    """Fields are hyper-parameters, which a sweep file sets by name. Write hooks for one client."""

    prompt_length: int = option(8, "P: prompt tokens")
    family = "global"  # or "personalised"
    citation = "ours"

    def layers(self, depth):
        """The blocks, of a backbone with `depth` blocks, at which `prompts` is called."""
        return (0,)

    def params(self, task):
        """Every tensor by name. home: "shared" is averaged, "local" stays with its client."""
        prompt = task.prompt_init("prompt", self.prompt_length, task.width)  # [P, D]
        return {"prompt": Param(prompt, home="shared")} | linear_head(task)

    def prompts(self, layer, p, cls, query):
        """The prompt slots {slot: [B, P, D]} that enter block `layer`; `cls` [B, D] is the CLS token that enters it."""
        return {"prompt": tokens(p["prompt"], cls)}

    # Further hooks; docs/hooks.md says when to write which:
    #
    # def logits(self, p, out): class scores [B, C] from out["cls"] [B, D]; by default the linear head
    # def extra_loss(self, p, received, out, query): a term of the loss, [B] about samples or a scalar about parameters
    # def observe(self, p, taps, query, y, weight): {name: sums} over the batch, added up over the round
    # def send(self, server, clients): {name: [K, ...]} that clients receive instead of copies of the server's values
    # def merge(self, server, updates): {name: value} that replace the n_k-weighted means
    # def check(self, task, run): raise ValueError if the options do not fit the task
'''
AGGREGATION = '''\
"""NAME: say in one sentence how the server combines the clients' updates.

Source: authors, year, arXiv number; name what differs from the paper or its code.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedbench import method
from fedbench.method import option


@dataclass(frozen=True)
class Aggregation(method.Aggregation):
    """Fields are hyper-parameters, which a sweep file sets by name."""

    lr: Annotated[float, Field(gt=0)] = option(1.0, "the server's step: 1 is FedAvg")
    citation = "ours"

    def merge(self, server, updates, mean):
        """{name: value} that replace values in `mean`, the aggregated parameters. It is empty if the method has none."""
        return {name: server[name] + self.lr * (value - server[name]) for name, value in mean.items()}

    # Further hooks; docs/hooks.md says when to write which:
    #
    # def params(self, spec, task): tensors of the aggregation, such as a momentum; `spec` holds the method's
    # def extra_loss(self, p, received): a scalar added to each client's mean loss
    # def check(self, task, run): raise ValueError if the options do not fit the task
'''
DATASET = '''\
"""NAME: say in one sentence what the images show, and where they come from."""

from dataclasses import dataclass

import numpy as np

from fedbench import data
from fedbench.data import option


@dataclass(frozen=True)
class Dataset(data.Dataset):
    """Fields are options, which a sweep file sets by name."""

    per_class: int = option(20, "images of each class; every fifth is for testing")
    citation = "ours"
    licence = "CC0"

    def load(self, root):
        """All samples, in the same order each time. Read files below `root`, the data folder, in place of these drawings."""
        draw = np.random.default_rng(0)
        labels = np.arange(4 * self.per_class) % 4  # [N]
        images = (60 * labels[:, None, None, None] + draw.integers(0, 60, (len(labels), 32, 32, 3))).astype(np.uint8)
        is_test = np.arange(len(labels)) // 4 % 5 == 4  # [N]
        return data.Samples(images, labels, is_test)  # images uint8 [N, 32, 32, 3]

    # Further hooks; docs/add_a_dataset.md says when to write which: extent, files_read, prepare, verify, info
'''
PARTITION = '''\
"""NAME: say in one sentence how samples are split over clients."""

from dataclasses import dataclass

import numpy as np

from fedbench import data


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """Fields are options, which a sweep file sets by name."""

    citation = "ours"

    def shares(self, samples, clients, stream):
        """The share of each class that each client gets: [C, clients], rows sum to 1. Draw from `stream` only."""
        weight = stream.uniform(0.5, 1.5, (samples.num_classes, clients))
        return np.asarray(weight / weight.sum(1, keepdims=True))

    # Other hooks; docs/add_a_partitioner.md says when to write which: groups, assign, deal
'''
METRIC = '''\
"""NAME: say in one sentence what it measures.

Source: authors, year, arXiv number; name what differs.
"""

from dataclasses import dataclass

from fedbench import method


@dataclass(frozen=True)
class Metric(method.Metric):
    """The key `metrics: [NAME]` of a run adds the column metric.NAME to its records."""

    def measure(self, predictions):
        """A share from 0 to 1, or None where it is not defined; this one is the accuracy over all samples.

        `predictions` holds scores [N, C], labels, clients and domains [N], and predicted and correct [N].
        """
        return predictions.correct.double().mean().item()
'''
SKELETONS: dict[Kind, str] = {
    "method": METHOD,
    "aggregation": AGGREGATION,
    "dataset": DATASET,
    "partition": PARTITION,
    "metric": METRIC,
}
