"""A whole run recomputed: one client after another, in plain PyTorch and double precision. No fedbench here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from oracle import laws, plain_vit
from oracle.plain_vit import DEPTH, PATCH, SIZE, WIDTH, PlainViT
from torch import Tensor

Values = dict[str, Tensor]


def pixels(images: np.ndarray, batch: laws.Batch | None, augment: str) -> Tensor:
    """Images [n, S, S, 3] as [n, 3, S, S] in [-1, 1] (mean and deviation 1/2), shifted by up to S/8 and mirrored."""
    made = []
    for i, image in enumerate(images):
        if batch is not None and augment == "crop_flip":
            down, right = (int(v) for v in np.round(batch.shift[i] * np.float32(SIZE / 8)))
            rows, cols = ((np.arange(SIZE) + by).clip(0, SIZE - 1) for by in (down, right))
            image = image[rows][:, cols]
        if batch is not None and augment != "none" and batch.flip[i]:
            image = image[:, ::-1]
        made.append(image.transpose(2, 0, 1) / 127.5 - 1)
    return torch.from_numpy(np.stack(made))


@dataclass
class Update:
    """What one client sends after a round."""

    values: Values
    gradient: Values  # mean over its steps
    loss: float  # mean over its samples
    observed: dict[str, Tensor]


@dataclass
class Replay:
    """The server and the clients' memory, as they stand after `round` rounds."""

    run: dict[str, Any]  # the run's configuration, as run.yaml has it
    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    vit: PlainViT
    split: laws.Split
    server: Values = field(default_factory=dict)
    memory: dict[str, dict[int, Tensor]] = field(default_factory=dict)  # {local name: {client: value}}
    introduced: set[int] = field(default_factory=set)
    round: int = 0
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("bytes_up", "bytes_down", "multiply_adds"), 0)
    )

    def __post_init__(self) -> None:
        self.method, self.aggregation, self.local = self.run["method"], self.run["aggregation"], self.run["local"]
        self.name, self.scaffold = self.method["name"], self.aggregation["name"] == "scaffold"
        self.classes = int(self.labels.max()) + 1
        seeds = self.run["seeds"]
        self.seed = {s: self.run["seed"] if seeds[s] is None else seeds[s] for s in ("cohort", "init", "batches")}
        self.y = torch.from_numpy(self.labels)
        self.scale = {"prompt": self.method.get("prompt_lr_scale", 1.0)}
        self.scale["class_prompt"] = self.method.get("class_prompt_lr_scale", 1.0)
        self.inject = None
        self.initialise()
        with torch.no_grad():
            self.feature = self.vit(pixels(self.images, None, "none"))

    # -- values ------------------------------------------------------------------------------------------------------
    def initialise(self) -> None:
        seed, bound = self.seed["init"], math.sqrt(6 / (3 * PATCH**2 + WIDTH))
        start = {
            "head.weight": laws.normal(seed, "head.weight", self.classes, WIDTH, std=0.02),
            "head.bias": torch.zeros(self.classes),
        }
        if self.name != "head_only":
            start["prompt"] = laws.uniform(seed, "prompt", self.method["prompt_length"], WIDTH, bound=bound)
        if self.name == "pep_fedpt":
            self.inject = DEPTH // 2 if self.method["inject"] is None else self.method["inject"]
            shape = (self.classes, self.method["class_prompt_length"], WIDTH)
            start["class_prompt"] = laws.uniform(seed, "class_prompt", *shape, bound=bound)
            self.order = torch.arange(self.classes)
            if self.method["prototypes"] == "shuffled":
                self.order = laws.normal(seed, "shuffle", self.classes, std=1.0).argsort()
            self.prototype = torch.zeros(self.classes, WIDTH, dtype=torch.float64)
            self.sum, self.count = torch.zeros_like(self.prototype), torch.zeros(self.classes, dtype=torch.float64)
        self.start = {name: value.double() for name, value in start.items()}
        homes = {"prompt": self.method.get("prompt"), "head.weight": self.method.get("head")}
        homes["head.bias"] = homes["head.weight"]
        self.local_names = [name for name in self.start if homes.get(name) == "local"]
        self.memory = {name: {} for name in self.local_names}
        self.server = {name: value for name, value in self.start.items() if name not in self.local_names}
        if self.scaffold:
            self.c = {name: torch.zeros_like(value) for name, value in self.server.items()}
            self.c_k = {}

    def of_client(self, k: int) -> Values:
        """What client k starts from: the shared values, and its own or their initial values."""
        return self.server | {name: self.memory[name].get(k, self.start[name]) for name in self.local_names}

    def prior(self, k: int | None) -> Tensor:
        """The class distribution of client k's training samples, in single precision; uniform for an unknown client."""
        if k is None:
            return torch.full((self.classes,), 1 / self.classes).double()
        counts = torch.bincount(self.y[self.split.train[k]], minlength=self.classes).double()
        return (counts / counts.sum()).float().double()

    # -- one forward pass ----------------------------------------------------------------------------------------------
    def scores(self, p: Values, k: int | None, index: np.ndarray, add_prior: bool, batch: laws.Batch | None = None):
        """Logits [n, C] of the samples `index`, and the CLS token that enters the block of the mixed prompt."""
        tapped: list[Tensor] = []

        def enter(layer: int, cls: Tensor) -> Tensor | None:
            n, new = len(cls), []
            if layer == 0:
                new.append(p["prompt"].expand(n, -1, -1))
            if layer == self.inject:
                tapped.append(cls.detach())
                z = self.feature[index] if self.method["query"] == "final" else cls.detach()
                new.append((self.posterior(z, k)[:, :, None, None] * p["class_prompt"]).sum(1))
            return torch.cat(new, 1) if new else None

        if self.name == "head_only" and self.local["augment"] == "none":
            cls = self.feature[index]
        else:
            images = pixels(self.images[index], batch, self.local["augment"])
            cls = self.vit(images, enter if self.name != "head_only" else lambda layer, cls: None)
        logits = cls @ p["head.weight"].T + p["head.bias"]
        if add_prior:
            logits = logits + torch.log((1 - 1e-6) * self.prior(k) + 1e-6 / self.classes)
        return logits, tapped[0] if tapped else None

    def posterior(self, z: Tensor, k: int | None) -> Tensor:
        """s_c(x) of PEP-FedPT: pi_k(c) exp(sim / tau), normalised over classes; pi_k has 1/1000 of uniform mass."""
        z, mu = z[:, None], self.prototype[None]
        if self.method["similarity"] == "cosine":
            length = z.norm(dim=-1).clamp(min=1e-12) * mu.norm(dim=-1).clamp(min=1e-12)
            similarity = (z * mu).sum(-1) / length
        else:
            similarity = -((z - mu) ** 2).mean(-1) / 2
        prior = torch.full((self.classes,), 1.0, dtype=torch.float64)
        if self.method["prior"] == "client":
            prior = 0.999 * self.prior(k) + 0.001 / self.classes
        raised = prior * torch.exp((similarity - similarity.max()) / self.method["temperature"])
        return raised / raised.sum(-1, keepdim=True)

    # -- a client's training -------------------------------------------------------------------------------------------
    def train(self, k: int, lr: float, epochs: int, *name: int | str, finetuning: bool = False) -> Update:
        received = self.of_client(k)
        p = {n: v.clone().requires_grad_() for n, v in received.items()}
        optimizer = self.optimizer(p, lr)
        local, seed = self.local, self.seed["batches"]
        total = samples = steps = 0
        gradient = {n: torch.zeros_like(v) for n, v in received.items()}
        observed: dict[str, Tensor] = {}
        for batch in laws.batches(self.split.train[k], local["batch_size"], epochs, seed, *name, 0, k):
            y, n = self.y[batch.index], len(batch.index)
            with_prior = self.method["logit_prior"] in ("train", "both")
            logits, tap = self.scores(p, k, batch.index, with_prior, batch)
            loss = F.cross_entropy(logits, y)
            if not finetuning:
                loss = loss + self.tie(p, received, k)
                self.observe(observed, tap, y)
            optimizer.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(float((v.grad**2).sum()) for v in p.values()))
            if local["clip"] is not None and norm > local["clip"]:
                for v in p.values():
                    v.grad *= local["clip"] / norm
            for key, v in p.items():
                gradient[key] += v.grad
            optimizer.step()
            total, samples, steps = total + n * loss.item(), samples + n, steps + 1
        mean = {key: v / steps for key, v in gradient.items()}
        return Update({key: v.detach() for key, v in p.items()}, mean, total / samples, observed)

    def optimizer(self, p: Values, lr: float) -> torch.optim.Optimizer:
        groups = [{"params": [value], "lr": lr * self.scale.get(name, 1.0)} for name, value in p.items()]
        decay = self.local["weight_decay"]
        return {
            "sgd": lambda: torch.optim.SGD(groups, lr, momentum=self.local["momentum"], weight_decay=decay),
            "adam": lambda: torch.optim.Adam(groups, lr, weight_decay=decay),
            "adamw": lambda: torch.optim.AdamW(groups, lr, weight_decay=decay),
        }[self.local["optimizer"]]()

    def tie(self, p: Values, received: Values, k: int) -> Tensor | float:
        """What the aggregation adds to a client's loss."""
        if self.aggregation["name"] == "fedprox":
            return self.aggregation["mu"] / 2 * sum(((p[n] - received[n]) ** 2).sum() for n in self.server)
        if self.scaffold:
            c_k = self.c_k.get(k, {n: torch.zeros_like(v) for n, v in self.c.items()})
            return sum(((self.c[n] - c_k[n]) * (p[n] - received[n])).sum() for n in self.server)
        return 0.0

    def observe(self, sums: dict[str, Tensor], tap: Tensor | None, y: Tensor) -> None:
        if self.name != "pep_fedpt" or (self.method["query"] != "inject" and self.method["average"] != "class_counts"):
            return
        hot = F.one_hot(y, self.classes).double()
        new = {"count": hot.sum(0)} | ({"sum": hot.T @ tap} if self.method["query"] == "inject" else {})
        for name, value in new.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value

    # -- a round -------------------------------------------------------------------------------------------------------
    def step(self) -> dict[str, Any]:
        """One more round; returns its costs."""
        self.round += 1
        cohort = laws.cohort(
            self.seed["cohort"], self.split.held_out, self.run["clients"]["per_round"], self.round
        ).tolist()
        new = [k for k in cohort if k not in self.introduced]
        bytes_up = self.introduce(new)
        self.introduced |= set(new)
        lr = self.local["lr"] * self.local["lr_decay"] ** (self.round - 1)
        updates = {k: self.train(k, lr, self.local["epochs"], self.round) for k in cohort}
        n = {k: len(self.split.train[k]) for k in cohort}
        share = {k: n[k] / sum(n.values()) for k in cohort}
        exchanged = sum(4 * v.numel() for v in self.server.values())
        bytes_up += len(cohort) * exchanged * (2 if self.scaffold else 1)
        bytes_up += sum(sparse_bytes(v) for u in updates.values() for v in u.observed.values())
        readable = 4 * self.prototype.numel() if self.name == "pep_fedpt" else 0
        readable += exchanged if self.scaffold else 0
        self.merge(updates, share)
        costs = {
            "train_loss": sum(share[k] * updates[k].loss for k in cohort),
            "bytes_up": bytes_up,
            "bytes_down": len(cohort) * (exchanged + readable),
            "multiply_adds": sum(n.values()) * self.local["epochs"] * self.per_image()
            + sum(n[k] for k in new) * self.per_feature(),
        }
        self.images_seen = getattr(self, "images_seen", 0) + sum(n.values()) * self.local["epochs"]
        for name in self.totals:
            self.totals[name] += costs[name]
        return costs | {f"total_{name}": value for name, value in self.totals.items()}

    def per_image(self) -> int:
        """Multiply-adds of one training image; a head on cached features costs nothing in the backbone.

        Augmented images have no cached features, and a head behind a frozen backbone has no backward pass in it.
        """
        if self.name == "head_only":
            return 0 if self.local["augment"] == "none" else plain_vit.multiply_adds({}, lowest=DEPTH)
        entering = {0: self.method["prompt_length"]}
        if self.inject is not None:
            entering[self.inject] = entering.get(self.inject, 0) + self.method["class_prompt_length"]
        return plain_vit.multiply_adds(entering, lowest=0)

    def per_feature(self) -> int:
        """Multiply-adds of one image's feature, which a client computes once, if its training reads features."""
        cached_head = self.name == "head_only" and self.local["augment"] == "none"
        query = self.name == "pep_fedpt" and self.method["query"] == "final"
        return plain_vit.multiply_adds({}, lowest=DEPTH) if cached_head or query else 0

    def introduce(self, new: list[int]) -> int:
        """Newcomers send the class sums of their features once, if prototypes are made of them; returns the bytes."""
        if self.name != "pep_fedpt" or self.method["query"] != "final":
            return 0
        sent = 0
        for k in new:
            hot = F.one_hot(self.y[self.split.train[k]], self.classes).double()
            sums = {"sum": hot.T @ self.feature[self.split.train[k]], "count": hot.sum(0)}
            self.sum, self.count = self.sum + sums["sum"], self.count + sums["count"]
            sent += sum(sparse_bytes(v) for v in sums.values())
        self.prototype = (self.sum / self.count.clamp(min=1)[:, None])[self.order]
        return sent

    def merge(self, updates: dict[int, Update], share: dict[int, float]) -> None:
        mean = {name: sum(share[k] * u.values[name] for k, u in updates.items()) for name in self.server}
        if self.name == "pep_fedpt":
            self.merge_prompts(updates, mean)
        if self.scaffold:
            old_c = dict(self.c)
            for k, u in updates.items():
                old = self.c_k.get(k, {n: torch.zeros_like(v) for n, v in old_c.items()})
                self.c_k[k] = {n: old[n] - old_c[n] + u.gradient[n] for n in old_c}
                for n in old_c:
                    self.c[n] = self.c[n] + (self.c_k[k][n] - old[n]) / int((~self.split.held_out).sum())
            rate = self.aggregation["lr"]
            mean = {n: self.server[n] + rate * (v - self.server[n]) for n, v in mean.items()}
        self.server = mean
        for name in self.local_names:
            self.memory[name] |= {k: u.values[name] for k, u in updates.items()}

    def merge_prompts(self, updates: dict[int, Update], mean: Values) -> None:
        if self.method["average"] == "class_counts":
            count = {k: u.observed["count"] for k, u in updates.items()}
            total = sum(count.values())
            for c in range(self.classes):
                mean["class_prompt"][c] = (
                    sum(count[k][c] / total[c] * u.values["class_prompt"][c] for k, u in updates.items())
                    if total[c]
                    else self.server["class_prompt"][c]
                )
        if self.method["query"] == "inject":
            count = sum(u.observed["count"] for u in updates.values())
            summed = sum(u.observed["sum"] for u in updates.values())
            new = self.prototype.clone()
            for slot, c in enumerate(self.order.tolist()):
                if count[c]:
                    now, old = summed[c] / count[c], self.prototype[slot]
                    m = self.method["momentum"] if bool((old != 0).any()) else 0.0
                    new[slot] = m * old + (1 - m) * now
            self.prototype = new

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def right(self, p: Values, k: int | None, index: np.ndarray) -> np.ndarray:
        """Which of the samples `index` are classified correctly."""
        if not len(index):
            return np.zeros(0, dtype=bool)
        with torch.no_grad():
            logits, _ = self.scores(p, k, index, self.method["logit_prior"] in ("eval", "both"))
        return (logits.argmax(1) == self.y[index]).numpy()

    def evaluate(self) -> dict[str, Any]:
        """Every accuracy of a record, and the table of clients."""
        clients = range(self.run["clients"]["number"])
        epochs, final = self.method["finetune_epochs"], {}
        for k in clients:
            final[k] = self.of_client(k)
            if epochs:
                final[k] = self.train(k, self.local["lr"], epochs, "finetune", finetuning=True).values
        test = {k: self.right(final[k], k, self.split.test[k]) for k in clients}
        validation = {k: self.right(final[k], k, self.split.validation[k]) for k in clients}
        out = self.split.held_out
        inside = sorted(test[k].mean() for k in clients if not out[k])
        outside = [test[k].mean() for k in clients if out[k]]
        place = 0.1 * (len(inside) - 1)  # linear interpolation between order statistics
        below, part = int(place), place - int(place)
        mean = sum(inside) / len(inside)
        everyone = np.concatenate([test[k] for k in clients if not out[k]])
        unknown = self.server | {name: self.start[name] for name in self.local_names}
        alone = bool(self.local_names) or epochs > 0
        self.table = {
            "client": list(clients),
            "held_out": out.tolist(),
            "train_samples": [len(part) for part in self.split.train],
            "test_samples": [len(part) for part in self.split.test],
            "accuracy": [test[k].mean() for k in clients],
            "val_accuracy": [validation[k].mean() for k in clients],
            "classes": [sorted(set(self.labels[part].tolist())) for part in self.split.train],
            "class_samples": [
                [int((self.labels[part] == c).sum()) for c in sorted(set(self.labels[part].tolist()))]
                for part in self.split.train
            ],
        }
        return {
            "mean_accuracy": mean,
            "worst_accuracy": inside[0],
            "p10_accuracy": inside[below] + part * (inside[below + 1] - inside[below]),
            "bottom_decile_accuracy": np.mean(inside[: math.ceil(len(inside) / 10)]),
            "std_accuracy": math.sqrt(sum((a - mean) ** 2 for a in inside) / len(inside)),
            "pooled_accuracy": everyone.mean(),
            "held_out_mean_accuracy": sum(outside) / len(outside),
            "held_out_worst_accuracy": min(outside),
            "global_accuracy": None if alone else self.right(unknown, None, np.flatnonzero(self.is_test)).mean(),
            "val_mean_accuracy": np.mean([validation[k].mean() for k in clients if not out[k]]),
        }


def sparse_bytes(value: Tensor) -> int:
    """Bytes of one client's class sums: the classes it has, each with a number of 4 bytes, or all without numbers."""
    row = 4 * value[0].numel()
    return min(sum(bool((r != 0).any()) for r in value) * (row + 4), len(value) * row)
