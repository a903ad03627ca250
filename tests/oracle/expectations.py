"""The aspects of `oracle.fingerprint` that each option must change, by option and value. It must change no other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

AFTER = {"merged", "answers"}  # the server's part
TRAINED = {"steps"} | AFTER  # from a client's steps on
SEEN = {"scores"} | TRAINED  # what a forward pass computes
SHAPED = {"shapes", "start"} | SEEN
FINAL = {"scores", "answers"}  # evaluation alone
DRAWN = {"split", "steps", "costs"} | AFTER  # other samples for each client
COHORT = {"cohorts", "steps", "costs"} | AFTER


@dataclass(frozen=True)
class Change:
    """An option's other value, the aspects that follow it, and the other options under which it matters.

    `refused`: the message by which the run refuses the value; `whole`: keys of the run beside the option's block.
    """

    value: Any
    aspects: set[str] = field(default_factory=set)
    block: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


TRAINING_FREE = ("fed3r", "fedcof", "fedncm", "clip_zero_shot")
FINE_TUNED = ("fedbabu", "fedrep")  # their answers are trained, too
SMALL = {
    "pfpt": {"pool_size": 6, "prompt_length": 2, "loops": 2},
    "fedpgp": {"prompt_length": 2},
    "fedbabu": {"finetune_epochs": 1},
    "pfedmoap": {"experts": 2},
    "fedmgp": {"groups": 3},
}


def common(name: str) -> dict[str, list[Change]]:
    """The options that every method has, and those that many have under one name."""
    tuned = {"scores"} if name in FINE_TUNED else set()
    eval_, train = Change("eval", FINAL), Change("train", TRAINED | tuned)
    both = [Change("both", FINAL | TRAINED)] if name in ("fedvpt", "fedncm") else []
    finetuned = Change(2, FINAL)
    if name in TRAINING_FREE:
        train, both = Change("train", refused="this method trains nothing"), [Change("both", FINAL)] if both else []
        finetuned = Change(2, refused="this method trains nothing")
    if name == "central_vpt":
        eval_, train = (
            Change(value, refused="without clients cannot have local values") for value in ("eval", "train")
        )
    length = SHAPED | {"costs"} if name != "pfpt" else SEEN | {"costs"}  # prompts of the pool for each sample
    scale = TRAINED | {"rates"} | ({"scores"} if name == "fedbabu" else set())
    return {
        "logit_prior": [eval_, train, *both],
        "finetune_epochs": [finetuned],
        "prompt_length": [Change(3, length)],
        "prompt_lr_scale": [Change(2.5, scale)],
        "context_length": [Change(3, SHAPED | {"costs"})],
    }


# Without a prior it changes no answer.
TEMPERATURE = [
    Change(0.7, refused="it needs `logit_prior: eval`"),
    Change(0.7, FINAL, {"logit_prior": "eval"}),
]


def pep_fedpt(name: str) -> dict[tuple[str, str], list[Change]]:
    """The options of `pep_fedpt`, which `pep_fedpt_text` has too."""
    inject = Change(2 if name == "pep_fedpt_text" else 1, SEEN | {"costs"})  # of three and of four blocks
    return {
        (name, "class_prompt_length"): [Change(2, SHAPED | {"costs"})],
        (name, "class_prompt_lr_scale"): [Change(3.0, TRAINED | {"rates"})],
        (name, "inject"): [inject],
        (name, "temperature"): [Change(0.7, SEEN)],
        (name, "similarity"): [Change("euclidean", SEEN)],
        (name, "query"): [Change("inject", SHAPED | {"costs"})],  # sums every round, and no prompt-free pass
        (name, "prior"): [Change("uniform", SEEN), Change("none", SEEN)],
        (name, "momentum"): [
            Change(0.6, refused="it needs `query: inject`"),
            Change(0.6, AFTER, {"query": "inject"}),
        ],
        (name, "average"): [Change("class_counts", AFTER | {"costs"})],
        (name, "prototypes"): [Change("shuffled", SEEN | {"start"})],
    }


METHODS: dict[tuple[str, str], list[Change]] = {
    ("apfl", "alpha"): [Change(0.3, TRAINED | {"start"})],
    ("apfl", "adaptive"): [Change(False, TRAINED | {"shapes"})],
    ("ditto", "pull"): [Change(5.0, TRAINED)],
    ("fed3r", "ridge"): [Change(1.0, FINAL | {"merged"})],
    ("fed3r", "normalize"): [Change(False, FINAL | {"merged"})],
    ("fed3r", "temperature"): TEMPERATURE,
    ("fedcof", "shrinkage"): [Change(9.0, FINAL | {"merged"})],
    ("fedcof", "temperature"): TEMPERATURE,
    ("fedncm", "temperature"): TEMPERATURE,
    ("fedpgp", "rank"): [Change(2, SHAPED)],  # the factors stay with the client, which sends no more bytes
    ("fedpgp", "factor_lr_scale"): [Change(3.0, TRAINED | {"rates"})],
    ("fedpgp", "mu"): [Change(0.2, TRAINED)],
    ("fedpgp", "temperature"): [Change(0.7, TRAINED)],
    ("fedpgp", "head"): [Change("local", AFTER | {"shapes", "costs"})],  # the first round starts alike
    ("fedpr", "drop"): [Change(0.05, AFTER | {"shapes", "start", "costs"})],  # from the second round on
    ("fedperfix", "prefix"): [Change("tokens", SHAPED | {"costs"})],
    ("fedperfix", "prefix_length"): [
        Change(3, refused="it needs `prefix: tokens`"),
        Change(3, SHAPED | {"costs"}, {"prefix": "tokens"}),
    ],
    ("fedperfix", "bottleneck"): [Change(5, SHAPED | {"costs"})],
    ("fedperfix", "scale"): [Change(0.5, SEEN)],
    ("fedperfix", "share"): [Change("backbone", SHAPED | {"costs"})],
    ("fedperfix", "local_blocks"): [
        Change(1, refused="it needs `share: backbone`"),
        Change(1, AFTER | {"shapes", "costs"}, {"share": "backbone"}),
    ],
    ("fedproto", "pull"): [Change(5.0, AFTER)],  # from the second round on, when there are prototypes
    ("fedproto", "finetune_epochs"): [Change(2, {"answers"})],  # without prototypes, all scores are alike
    ("fedproto", "prompt_length"): [Change(3, (SHAPED | {"costs"}) - {"scores"})],
    ("fedproto", "predict"): [Change("head", FINAL)],
    # A prior in training changes the losses by which clients choose, also before an evaluation.
    ("ifca", "logit_prior"): [Change("eval", FINAL), Change("train", TRAINED | {"scores"})],
    ("ifca", "models"): [Change(3, (SHAPED | {"costs"}) - {"scores"})],  # these two clients take none of the new set
    ("fedvpt", "prompt"): [Change("local", AFTER | {"shapes", "costs"})],
    ("fedvpt", "head"): [Change("local", AFTER | {"shapes", "costs"})],
    ("fedvpt", "own_init"): [
        Change(True, refused="it needs `prompt: local` or `head: local`"),
        Change(True, SEEN | {"start"}, {"prompt": "local"}),
    ],
    ("fedvpt_supcon", "contrast"): [Change(3.0, TRAINED)],
    ("fedvpt_supcon", "temperature"): [Change(0.7, TRAINED)],
    ("full_finetune", "backbone_lr_scale"): [Change(0.5, TRAINED | {"rates"})],
    ("lora", "rank"): [Change(2, (SHAPED | {"costs"}) - {"scores"})],  # B is zero at the start
    ("lora", "alpha"): [Change(0.3, TRAINED)],
    ("lora", "target"): [Change("qkv", (SHAPED | {"costs"}) - {"scores"})],
    ("lora", "lora_lr_scale"): [Change(2.0, TRAINED | {"rates"})],
    **pep_fedpt("pep_fedpt"),
    **pep_fedpt("pep_fedpt_text"),
    ("fedmgp", "groups"): [Change(4, SHAPED | {"costs"})],
    ("fedmgp", "selected"): [
        Change(1, (SHAPED | {"costs"}) - {"scores"}),
        Change(4, refused="selected 4 is more than groups 3"),
    ],
    ("fedmgp", "temperature"): [Change(0.01, AFTER)],  # from the second round on, when there are averages
    ("fedmgp", "diversity"): [Change(0.2, TRAINED)],
    ("fedmgp", "diversity_loss"): [Change("apart", TRAINED)],
    ("pfedmoap", "experts"): [Change(1, (SHAPED | {"costs"}) - {"scores"})],
    ("pfedmoap", "selection"): [Change("random", {"shapes", "start", "merged"})],  # too little to change an answer
    ("pfedmoap", "local_share"): [Change(0.1, AFTER)],  # from the second round on, when there are experts
    ("pfedmoap", "gate_lr_scale"): [Change(3.0, AFTER | {"rates"})],
    ("pfedmoap", "gate_width"): [Change(6, SHAPED - {"scores"})],
    ("pfedmoap", "gate_heads"): [Change(2, AFTER), Change(5, refused="gate_heads 5 do not divide the gate's width 24")],
    ("pfedmoap", "scaling"): [Change(1.0, AFTER)],
    ("pfedpg", "attention_width"): [Change(7, SHAPED)],
    ("pfedpg", "server_lr"): [Change(0.3, AFTER)],
    ("pfedpt", "border"): [Change(2, TRAINED | {"shapes", "start"})],  # zero at the start
    ("pfedpt", "border_lr_scale"): [Change(3.0, TRAINED | {"rates"})],
    ("pfpt", "pool_size"): [Change(3, SHAPED | {"costs"})],
    ("pfpt", "similarity"): [Change(0.5, TRAINED)],
    ("pfpt", "loops"): [Change(1, AFTER)],
    ("pfpt", "choice"): [Change("batch", TRAINED)],
    ("pfpt", "bernoulli"): [Change("code", AFTER)],
    ("fedtpg", "heads"): [Change(2, SEEN), Change(3, refused="heads 3 do not divide the text tower's width 16")],
    ("fedvpt_text", "context_length"): [Change(3, SHAPED | {"costs"})],
    ("fedotp", "transport"): [Change("sinkhorn", SEEN, {"iterations": 1})],  # of mass 1, many iterations agree
    ("fedotp", "mass"): [
        Change(0.4, SEEN),
        Change(0.4, refused="it needs `transport: unbalanced`", block={"transport": "sinkhorn"}),
    ],
    ("fedotp", "eps"): [Change(0.5, SEEN)],
    ("fedotp", "iterations"): [Change(1, SEEN)],
    ("fedpgp_text", "rank"): [Change(2, SHAPED)],  # the factors stay with the client, which sends no more bytes
    ("fedpgp_text", "mu"): [Change(0.2, TRAINED)],
    ("fedpgp_text", "temperature"): [Change(0.7, TRAINED)],
    ("kgcoop", "pull"): [Change(0.7, TRAINED)],
    ("prograd", "pull"): [Change(0.7, TRAINED)],
    ("prograd", "temperature"): [Change(0.7, TRAINED)],
    ("promptfolio", "theta"): [Change(0.6, SEEN)],
    ("promptfl", "per_class"): [Change(True, SHAPED | {"costs"})],
    ("sgpt", "group_length"): [Change(2, SHAPED | {"costs"})],
    ("sgpt", "groups"): [Change(3, SHAPED | {"costs"})],
    ("sgpt", "shared_blocks"): [Change(1, SHAPED | {"costs"})],
    ("sgpt", "group_blocks"): [Change(1, SHAPED | {"costs"})],
    ("sgpt", "momentum"): [Change(0.2, AFTER)],
    ("sgpt", "key_momentum"): [Change(0.2, {"merged"})],  # too little to change a choice
    ("sgpt", "query_block"): [Change(1, SEEN | {"costs"})],  # fewer blocks for a client's features
    ("sgpt", "choice"): [Change("batch", TRAINED | {"costs"})],  # fewer groups are chosen, so their counts are shorter
    ("sgpt", "key_epochs"): [Change(1), Change(1, TRAINED, whole={"local": {"epochs": 2, "batch_size": 4, "lr": 0.1}})],
}

AGGREGATIONS: dict[tuple[str, str], list[Change]] = {
    **{(name, option): [Change(0.4, AFTER)] for name in ("fedadam", "fedyogi") for option in ("lr", "beta1", "beta2")},
    **{(name, "tau"): [Change(0.5, AFTER | {"start"})] for name in ("fedadam", "fedyogi")},  # v starts at tau^2
    ("fedavgm", "lr"): [Change(0.5, AFTER)],
    ("fedavgm", "beta"): [Change(0.3, AFTER)],
    ("fedprox", "mu"): [Change(0.7, TRAINED)],
    **{
        (name, "weighting"): [Change("samples", refused="Input should be 'uniform'")]
        for name in ("dp_fedavg", "feddyn", "krum", "median", "trimmed_mean")
    },
    ("dp_fedavg", "clip"): [Change(1e-3, AFTER)],
    ("dp_fedavg", "noise"): [Change(0.0, AFTER)],
    ("dp_fedavg", "delta"): [Change(1e-3)],  # of the records' epsilon; tests/methods/test_privacy.py shows its effect
    ("dp_fedavg", "statistics_clip"): [Change(0.5)],  # of statistics, which this method does not report
    ("feddyn", "alpha"): [Change(0.5, TRAINED)],
    ("quantized", "error_feedback"): [Change(False, TRAINED | {"shapes", "start"})],
    ("sign", "error_feedback"): [Change(False, TRAINED | {"shapes", "start"})],
    ("topk", "error_feedback"): [Change(False, TRAINED | {"shapes", "start"})],
    ("topk", "share"): [Change(0.3, AFTER | {"costs"})],
    ("krum", "byzantine"): [Change(0)],  # of two clients, both scores are the distance between them
    ("krum", "selected"): [Change(2, AFTER)],
    ("trimmed_mean", "trim"): [Change(0.4)],  # two clients have no extremes; tests/methods/test_robust.py has more
    ("scaffold", "lr"): [Change(0.5, AFTER)],
}
# Options that every aggregation has.
OF_AGGREGATIONS = {"weighting": [Change("uniform", AFTER)]}

# Keys of the run. None: changes nothing of these aspects; another test, which test_every_option.py names, shows its effect.
RUN: dict[tuple[str, ...], list[Change] | None] = {
    ("backbone", "name"): [Change("nano", SHAPED | {"backbone", "costs"}, {"weights": None, "image_size": None})],
    ("backbone", "weights"): [Change("b.safetensors", SEEN | {"backbone"})],
    ("backbone", "pool"): [Change("avg", SEEN | {"backbone", "costs"})],
    # Without effect on a method that reads no text, where it is refused.
    ("backbone", "template"): None,
    ("backbone", "image_size"): [Change(48, SEEN | {"backbone", "costs"})],
    ("dataset",): [Change({"name": "npz", "path": "b.npz"}, SEEN | {"data"})],  # other images of the same labels
    ("partition",): [Change({"name": "iid"}, DRAWN)],
    ("method",): [Change({"name": "head_only"}, SHAPED | {"costs"})],
    ("aggregation",): [Change({"name": "fedavgm"}, AFTER | {"start", "shapes"})],
    ("seed",): [Change(1, SHAPED - {"shapes"} | DRAWN | COHORT)],
    ("seeds", "partition"): [Change(7, DRAWN, whole={"clients": {"number": 5, "per_round": 2}})],
    ("seeds", "cohort"): [Change(7, COHORT)],
    ("seeds", "init"): [Change(7, SEEN | {"start"})],
    ("seeds", "batches"): [Change(7, TRAINED)],
    ("rounds",): [Change(2, {"cohorts"})],  # the first two rounds are the same
    ("clients", "number"): [Change(6, DRAWN | COHORT)],
    ("clients", "per_round"): [Change(3, COHORT)],
    ("clients", "held_out"): [
        Change(4, {"split"} | COHORT, whole={"clients": {"number": 5, "per_round": 1, "held_out": 1}})
    ],
    ("clients", "validation"): [Change(0.5, DRAWN)],
    ("clients", "shots"): [Change(1, DRAWN)],
    ("clients", "novel"): [Change(0.5, refused="clients.novel needs a method that reads text")],
    ("clients", "dropout"): [Change(0.9, {"steps", "costs"} | AFTER)],
    ("clients", "stragglers"): [
        Change(1.0, {"steps", "costs"} | AFTER, whole={"local": {"epochs": 3, "batch_size": 4, "lr": 0.1}})
    ],
    ("clients", "available"): [Change("who.csv", COHORT)],
    ("clients", "draw"): [Change("loss", COHORT)],
    ("clients", "candidates"): [
        Change(2, COHORT, whole={"clients": {"number": 5, "per_round": 2, "draw": "loss", "candidates": 5}})
    ],
    ("local", "epochs"): [Change(2, TRAINED | {"costs"})],
    ("local", "batch_size"): [Change(3, TRAINED)],
    ("local", "optimizer"): [Change("adam", TRAINED), Change("adamw", TRAINED)],
    ("local", "lr"): [Change(0.05, TRAINED)],
    ("local", "momentum"): [Change(0.0, TRAINED), Change(0.0, set(), {"optimizer": "adam"})],
    ("local", "weight_decay"): [
        *(Change(0.1, TRAINED, {"optimizer": optimizer}) for optimizer in ("sgd", "adam", "adamw"))
    ],
    ("local", "lr_decay"): [Change(0.5, AFTER)],  # from the second round on
    ("local", "schedule"): [  # the first round of two has the whole rate; that of a warm-up has less
        Change("constant"),
        Change("cosine", AFTER),
        Change("warmup", TRAINED, whole={"rounds": 6}),
    ],
    ("local", "warmup_rounds"): [Change(2, TRAINED, {"schedule": "warmup"}, {"rounds": 6})],
    ("local", "label_smoothing"): [Change(0.1, TRAINED)],
    ("local", "clip"): [Change(0.1, TRAINED), Change(1e9)],
    ("local", "augment"): [Change("flip", TRAINED), Change("crop_flip", TRAINED)],
    ("precision",): [Change("float32", SEEN), Change("tf32", SEEN), Change("bfloat16", SEEN)],
    ("evaluate_every",): None,
    ("metrics",): [Change(["macro_f1"])],  # of the records alone; tests/test_metric_plugins.py shows them
    ("test_data",): None,
}
