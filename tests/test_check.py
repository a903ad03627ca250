"""The contract checks on plug-ins with one mistake each: the message names the hook, the expected and the actual result."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch

from fedbench import data
from fedbench.cli import check
from fedbench.contract import form
from fedbench.method import Method, only_if
from fedbench.method.hooks import hooks_of, is_optional
from fedbench.plan.plugins import ALL_KINDS, HOME, PluginError, plugins

HEAD = '''
"""A plug-in of the tests."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fedbench import data, method
from fedbench.method import Param, class_sums, linear_head, option, tokens

SEEN = []

'''
PROMPTED = {  # a correct method: a shared prompt and a local one
    "layers": "def layers(self, depth): return (0,)",
    "params": """
        def params(self, task):
            start = task.prompt_init("prompt", 2, task.width)
            return {"prompt": Param(start), "own": Param(start, "local")} | linear_head(task)
    """,
    "prompts": """
        def prompts(self, layer, p, cls, query):
            return {"prompt": tokens(p["prompt"], cls), "own": tokens(p["own"], cls)}
    """,
}
SPARE = PROMPTED["params"].replace("| linear_head", '| {"spare": Param(start[0, 0])} | linear_head')
CLASSES = {"method": "Method", "aggregation": "Aggregation", "dataset": "Dataset", "partition": "Partitioner"}


def write(folder: Path, kind: str = "method", decorator: str = "@dataclass(frozen=True)", **members: str) -> Path:
    """Write a plug-in file whose class has `members`; a method also has those of `PROMPTED` that are not set to ''."""
    name = CLASSES[kind]
    module = "data" if kind in ("dataset", "partition") else "method"
    bodies = {**(PROMPTED if kind == "method" else {}), **members}
    body = "\n\n".join(indent(dedent(text).strip(), "    ") for text in bodies.values() if text)
    path = folder / f"{kind}_{len(list(folder.iterdir()))}.py"
    path.write_text(
        f'{HEAD}\n{decorator}\nclass {name}({module}.{name}):\n    """A plug-in."""\n\n{body or "    pass"}\n'
    )
    return path


def first_wrong(path: Path) -> tuple[str, str]:
    """The name of the first check that a file breaks, with its defaults, and the message."""
    kind, cls = check.find(path)
    for contract_check, subjects in check.plan(kind, {path.stem: cls()}, path.parent):
        wrong, where = check.first_wrong(contract_check, subjects)
        if wrong:
            return contract_check.name, wrong + where
    return "", ""


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "no prompts()": (
        {"prompts": ""},
        "hooks_are_complete",
        r"^prompts\(\): expected a hook prompts\(layer, p, cls, query\), .*; found none",
    ),
    "no layers()": ({"layers": ""}, "hooks_are_complete", r"^layers\(\): expected .*; found none"),
    "no absorb()": (
        {"statistics": "def statistics(self, p, query, y): return {}"},
        "hooks_are_complete",
        r"^absorb\(\): expected a hook absorb\(server, stats\), .*; found none",
    ),
    "prompts() of a wrong shape": (
        {"prompts": 'def prompts(self, layer, p, cls, query): return {"prompt": p["prompt"] + 0 * p["own"]}'},
        "samples_do_not_see_each_other",
        r"prompts\(\), slot 'prompt': expected \[B, P, D\] = \[4, any, 32\] for one client, found \[2, 32\]",
    ),
    "logits() of a wrong shape": (
        {"logits": 'def logits(self, p, out): return out["cls"].sum()'},
        "samples_do_not_see_each_other",
        r"logits\(\): expected \[B, C\] = .* for one client, found \[\]",
    ),
    "merge() of a wrong shape": (
        {"merge": 'def merge(self, server, updates): return {"prompt": updates.updated["prompt"]}'},
        "",
        r"merge\(\): 'prompt' expected \[2, 32\], found \[3, 2, 32\]",
    ),
    "merge() of an unknown value": (
        {"merge": 'def merge(self, server, updates): return {"promt": server["prompt"]}'},
        "",
        r"merge\(\): 'promt' is not one of params\(\): prompt, own, head.weight, head.bias",
    ),
    "a parameter that nothing uses": (
        {"params": SPARE},
        "samples_do_not_see_each_other",
        r"params\(\) declares 'spare' as trained, but the loss does not depend on it: no hook uses it",
    ),
    "a parameter that nothing moves": (
        {
            "params": SPARE,
            "logits": 'def logits(self, p, out): return F.linear(out["cls"], p["head.weight"]) + 0 * p["spare"] + 0 * '
            'p["head.bias"]',
        },
        "training_changes_trained_values_only",
        r"^params\(\) 'spare': expected a change in training, .*; found no change",
    ),
    "initial values without a stream": (
        {"params": 'def params(self, task): return {"prompt": Param(torch.randn(2, task.width))} | linear_head(task)'},
        "params_are_declared",
        r"^params\(\) 'prompt': expected the same initial value in every process",
    ),
    "send() that mixes clients": (
        {
            "send": 'def send(self, server, clients): return {"prompt": server["prompt"].expand(len(clients), 2, -1) + '
            "clients.double().mean()}"
        },
        "send_keeps_clients_apart",
        r"^send\(\), 'prompt': expected the same row for client 4 alone; found a difference of",
    ),
    "merge() that mixes clients": (
        {
            "merge": 'def merge(self, server, updates): g = updates.updated["own"]; return {"own": g.mean(0).expand_as(g)}'
        },
        "merge_keeps_clients_apart",
        r"^merge\(\), 'own': expected a row for client 4 that depends on its own updates only; found a difference of",
    ),
    "merge() that reads what stays with the client": (
        {"merge": 'def merge(self, server, updates): return {"prompt": updates.updated["own"].mean(0)}'},
        "local_values_stay_with_the_client",
        r"^merge\(\), 'prompt': expected no trace of the clients' local values \(own\)",
    ),
    "state on the object": (
        {"logits": "def logits(self, p, out): object.__setattr__(self, 'last', 1); return super().logits(p, out)"},
        "state_is_in_params_only",
        r"expected state in params\(\) only, .*; found self.last set by a hook",
    ),
    "state in the module": (
        {"logits": "def logits(self, p, out): SEEN.append(1); return super().logits(p, out)"},
        "state_is_in_params_only",
        r"^the module: .*; found SEEN changed by a hook",
    ),
    "state on the class": (
        {
            "count": "count = 0",
            "logits": """
                def logits(self, p, out):
                    type(self).count += 1
                    return super().logits(p, out)
            """,
        },
        "state_is_in_params_only",
        r"^the class: .*; found count changed by a hook",
    ),
    "prompts() that see other samples": (
        {
            "prompts": """
                def prompts(self, layer, p, cls, query):
                    return {"prompt": tokens(p["prompt"] + cls.mean(0), cls), "own": tokens(p["own"], cls)}
            """
        },
        "samples_do_not_see_each_other",
        r"^prompts\(\), slot 'prompt': expected a result for each sample that depends on that sample alone",
    ),
    "a conditional hook that sees other samples": (
        {
            "phases": 'phases = (("prompt", "own"), ("head.weight", "head.bias"))',
            "extra_loss": """
                @method.only_if(lambda self: self.phase == 1)
                def extra_loss(self, p, received, out, query):
                    return out["cls"].sum(-1) * 0.01 + out["cls"].mean()
            """,
        },
        "samples_do_not_see_each_other",
        r"^extra_loss\(\): expected a result for each sample that depends on that sample alone",
    ),
    "conditional sums that count padding": (
        {
            "phases": 'phases = (("prompt", "own"), ("head.weight", "head.bias"))',
            "taps": "def taps(self, depth): return (1,)",
            "observe": """
                @method.only_if(lambda self: self.phase == 1)
                def observe(self, p, taps, query, y, weight):
                    return {"sum": taps[1].sum(0)}
            """,
        },
        "",
        r"^observe\(\), 'sum': expected sums without padding",
    ),
    "a conditional hook with other arguments": (
        {
            "phases": 'phases = (("prompt", "own"), ("head.weight", "head.bias"))',
            "extra_loss": """
                @method.only_if(lambda self: self.phase == 1)
                def extra_loss(self, p, out):
                    return out["cls"].sum(-1)
            """,
        },
        "hooks_have_the_right_arguments",
        r"^extra_loss\(\): expected extra_loss\(p, received, out, query\); found extra_loss\(p, out\)",
    ),
    "a helper that raises": (
        {
            "_helper": "def _helper(self): return self.nothing",
            "merge": "def merge(self, server, updates): return self._helper()",
        },
        "",
        r"merge\(\) in line \d+: AttributeError",
    ),
    "a loss that counts padding": (
        {"extra_loss": 'def extra_loss(self, p, received, out, query): return out["cls"].square().mean()'},
        "samples_do_not_see_each_other",
        r"^extra_loss\(\): expected \[B\] for a term about samples .*; found a scalar that depends on samples",
    ),
    "a loss that reads other samples' labels": (
        {"extra_loss": 'def extra_loss(self, p, received, out, query): return out["cls"][:, 0] * out["y"].sum()'},
        "samples_do_not_see_each_other",
        r"^extra_loss\(\): expected a result for each sample that depends on that sample alone",
    ),
    "sums of losses that count padding": (
        {"observe": 'def observe(self, p, taps, query, y, weight): return {"sum": taps["loss"].sum()}'},
        "samples_do_not_see_each_other",
        r"^observe\(\), 'sum': expected sums without padding",
    ),
    "values of a batch that count padding": (
        {
            "uses_query": "uses_query = True",
            "batch_values": 'def batch_values(self, p, query, weight, epoch): return {"mean": query.mean(0)}',
        },
        "samples_do_not_see_each_other",
        r"^batch_values\(\), 'mean': expected values without padding",
    ),
    "sums that count padding": (
        {
            "taps": "def taps(self, depth): return (1,)",
            "observe": 'def observe(self, p, taps, query, y, weight): return {"sum": taps[1].sum(0)}',
        },
        "samples_do_not_see_each_other",
        r"^observe\(\), 'sum': expected sums without padding",
    ),
    "a query that is not asked for": (
        {
            "prompts": 'def prompts(self, layer, p, cls, query): return {"prompt": query[:, None] + p["prompt"] + p["own"]}'
        },
        "samples_do_not_see_each_other",
        r"prompts\(\) in line \d+: TypeError: 'NoneType' object is not subscriptable",
    ),
    "no decorator": ({"decorator": ""}, "fields_are_options", r"^class Method: expected @dataclass\(frozen=True\)"),
    "a fact that has become a field": (
        {"family": 'family: str = "personalised"'},
        "fields_are_options",
        r"^field 'family': expected no field of this name, .*; found family: <class 'str'>",
    ),
    "a field without meaning": (
        {"length": "length: int = 3"},
        "fields_are_options",
        r"^field 'length': expected option\(default, 'its meaning'\); found no meaning",
    ),
    "a family that there is not": (
        {"family": "family = 'best'"},
        "fields_are_options",
        r"^family: expected one of global, personalised, .*; found 'best'",
    ),
    "no source": (
        {"citation": "citation = ''"},
        "fields_are_options",
        r"^citation: expected .*; found an empty string",
    ),
    "no statistics()": (
        {"absorb": "def absorb(self, server, stats): return {}"},
        "hooks_are_complete",
        r"^statistics\(\): expected a hook statistics\(.*\), whose results absorb\(\) reads; found none",
    ),
    "taps that nothing sees": (
        {"taps": "def taps(self, depth): return (1,)"},
        "hooks_are_complete",
        r"^observe\(\): expected a hook observe\(.*\), the only hook that reads the taps; found none",
    ),
    "views that nothing reads": (
        {"views": "views = ('other',)"},
        "hooks_are_complete",
        r"^extra_loss\(\): expected a hook extra_loss\(.*\), the only hook that reads the views; found none",
    ),
    "a choice without candidates": (
        {"choose_by_loss": "def choose_by_loss(self, losses, chosen): return {}"},
        "hooks_are_complete",
        r"^candidates: expected the names of the models whose losses choose_by_loss\(\) compares; found none",
    ),
    "a value kept on a frozen object": (
        {"logits": "def logits(self, p, out): self.last = out; return super().logits(p, out)"},
        "samples_do_not_see_each_other",
        r"logits\(\) in line \d+: FrozenInstanceError: cannot assign to field 'last'",
    ),
    "a hook with other arguments": (
        {"prompts": 'def prompts(self, layer, p, cls): return {"prompt": tokens(p["prompt"], cls)}'},
        "hooks_have_the_right_arguments",
        r"^prompts\(\): expected prompts\(layer, p, cls, query\); found prompts\(layer, p, cls\)",
    ),
    "a hook that is a value": (
        {"layers": "layers = (0,)"},
        "hooks_have_the_right_arguments",
        r"^layers\(\): expected a method layers\(depth\); found layers = \(0,\)",
    ),
    "a fact that is a method": (
        {"uses_query": "def uses_query(self): return False"},
        "hooks_have_the_right_arguments",
        r"^uses_query: expected True, False, or a @property",
    ),
    "a misspelt hook": (
        {"merges": "def merges(self, server, updates): return {}"},
        "public_names_are_hooks",
        r"^merges: expected a hook \(did you mean 'merge'\?\); found a name that nothing uses",
    ),
    "a hook that raises": (
        {"merge": "def merge(self, server, updates): return updates.nothing"},
        "",
        r"merge\(\) in line \d+: AttributeError: 'ClientUpdates' object has no attribute",
    ),
}


NEARLY_RIGHT = ("a parameter that nothing moves",)  # only the last check sees it


@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=pytest.mark.slow) if name in NEARLY_RIGHT else name for name in WRONG]
)
def test_a_mistake_in_a_method_is_reported(mistake, tmp_path):
    members, name, says = WRONG[mistake]
    check_name, wrong = first_wrong(write(tmp_path, **members))
    assert re.search(says, wrong), wrong
    assert check_name == name or not name


@pytest.mark.slow
def test_the_method_without_mistakes_keeps_the_contract(tmp_path):
    assert first_wrong(write(tmp_path)) == ("", "")


SHARES = "def shares(self, samples, clients, stream): return "
OTHERS: dict[str, tuple[str, dict[str, str], str]] = {
    "an aggregation that gives another shape": (
        "aggregation",
        {"merge": "def merge(self, server, updates, mean): return {n: v[None] for n, v in mean.items()}"},
        r"merge\(\): 'prompt' expected \[8, 32\], found \[1, 8, 32\]",
    ),
    "an aggregation with other arguments": (
        "aggregation",
        {"merge": "def merge(self, server, updates): return {}"},
        r"^merge\(\): expected merge\(server, updates, mean\); found merge\(server, updates\)",
    ),
    "a private aggregation that leaves reports without noise": (
        "aggregation",
        {"private": "private = True"},
        r"^absorb\(\): expected a hook absorb\(.*\), since what clients report once .* without noise; found none",
    ),
    "an extent of other counts": (
        "dataset",
        {
            "load": """
                def load(self, root):
                    return data.Samples(np.arange(48).astype(np.uint8).reshape(4, 2, 2, 3), np.arange(4) % 2, np.arange(4) < 2)
            """,
            "extent": "def extent(self, root): return data.Extent(3, 2, 2)",
        },
        r"^extent\(\): expected Extent\(train=2, test=2, classes=2\); found Extent\(train=3, test=2, classes=2\)$",
    ),
    "a dataset that loads nothing": ("dataset", {}, r"^load\(\): expected a hook load\(root\), .*; found none"),
    "a dataset of floats": (
        "dataset",
        {
            "load": """
                def load(self, root):
                    return data.Samples(np.zeros((4, 2, 2, 3)), np.arange(4) % 2, np.arange(4) < 2)
            """
        },
        r"images must be uint8 \[N, H, W, 3\], not float64 \[4, 2, 2, 3\]",
    ),
    "a dataset that is drawn anew": (
        "dataset",
        {
            "load": """
                def load(self, root):
                    images = np.random.default_rng().integers(0, 256, (4, 2, 2, 3)).astype(np.uint8)
                    return data.Samples(images, np.array([0, 1, 0, 1]), np.arange(4) < 2)
            """
        },
        r"^load\(\), images: expected the same at each call",
    ),
    "a partitioner without shares": ("partition", {}, r"^shares\(\): expected a hook shares\(.*\), or assign\(\)"),
    "shares of a wrong shape": (
        "partition",
        {"shares": SHARES + "np.full((5, 2), 0.5)"},
        r"shares\(\) must give \[groups, clients\] = \[5, 6\] or more rows, at least 0 and each row summing to 1, not \[5, 2\]",
    ),
    "a partitioner with a stream of its own": (
        "partition",
        {"shares": SHARES + "np.random.default_rng().dirichlet(np.full(clients, 9.0), 5)"},
        r"^shares\(\): expected the same split for the same seed",
    ),
}


@pytest.mark.parametrize("mistake", OTHERS)
def test_a_mistake_in_another_plug_in_is_reported(mistake, tmp_path):
    kind, members, says = OTHERS[mistake]
    members = {"citation": "citation = 'ours'"} | members
    _, wrong = first_wrong(write(tmp_path, kind, **members))
    assert re.search(says, wrong), wrong


def test_the_command_line(tmp_path, capsys):
    folder = tmp_path / "datasets" / "partitioners"
    folder.mkdir(parents=True)
    fine = write(folder, "partition", shares=SHARES + "np.full((5, clients), 1 / clients)")
    assert check.main([str(fine)]) == check.FINE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{fine}: partition {fine.stem}, 3 variants"
    assert len(lines) == 8
    assert all(line.startswith("  ok ") for line in lines[1:])

    misspelt = write(
        tmp_path, prompts="", layers="", params="", merges="def merges(self): return 1", broken="layers = 3"
    )
    assert check.main([str(misspelt), str(fine)]) == check.BROKEN
    printed = capsys.readouterr().out
    assert "FAIL  Each hook takes the arguments" in printed
    assert "warn  Each public name" in printed
    assert f"note  a sweep looks for it in {ALL_KINDS['method'][0]}/ below" in printed
    assert printed.endswith("\n")

    raises = write(tmp_path, logits="def logits(self, p, out): return out['cls'].sum().item()")
    assert check.main([str(raises)]) == check.BROKEN
    printed = capsys.readouterr().out
    assert printed.count("in line") == 1  # the exception is printed once, not for each check that it ends
    assert re.search(r"FAIL  \d+ further checks end with the same message as one above", printed)

    (taken := folder / "iid.py").write_text(fine.read_text())
    assert check.main([str(taken)]) == check.FINE
    assert "note  fedbench has a partition called iid" in capsys.readouterr().out
    shipped = plugins().classes["partition"]["iid"]
    assert "citation" in typing.get_type_hints(shipped)  # its module is still its own

    warned = write(
        folder, "partition", shares=SHARES + "np.full((5, clients), 1 / clients)", group="def group(self): 1"
    )
    assert check.main([str(warned)]) == check.FINE
    assert "did you mean 'groups'?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read (No such file"),
        ("def broken(:", "not Python: invalid syntax"),
        (
            "class Methods: pass",
            "expected one class called Method, Aggregation, Dataset, Partitioner, Metric; found Methods",
        ),
        ("class Method: pass", "expected a class 'Method', a frozen dataclass derived from Method"),
        ("import nothing_of_this_name\nclass Method: pass", "ModuleNotFoundError: No module named"),
        (f"{HEAD}\n@dataclass\nclass Method(method.Method): pass", "cannot inherit non-frozen dataclass from a frozen"),
    ],
)
def test_a_file_without_a_plug_in_is_a_mistake(text, says, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert check.main([str(path)]) == check.MISTAKE
    printed = capsys.readouterr().err
    assert says in printed
    assert str(path) in printed


def test_fields_are_given_by_hand(tmp_path, capsys):
    assert check.main([str(HOME / "datasets" / "npz.py")]) == check.MISTAKE
    assert "path: Field required (give it with --set FIELD=VALUE)" in capsys.readouterr().err
    path = HOME / "datasets" / "digits.py"
    assert check.main([str(path), "--set", "test_evry=3"]) == check.MISTAKE
    assert "no field 'test_evry'; legal: test_every" in capsys.readouterr().err
    assert check.main([str(path), "--set", "test_every=3"]) == check.FINE


def test_every_hook_is_declared_once_with_types_and_a_meaning():
    assert {base for _, _, base in ALL_KINDS.values()} == set(form.BASES) - {data.Partitioner}
    for base in form.BASES:
        for name, signature in hooks_of(base).items():
            stub = inspect.getattr_static(base, name)
            assert stub.__doc__, (base, name)
            assert signature.return_annotation is not inspect.Signature.empty, (base, name)
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (base, name, parameter)


def test_an_optional_hook_is_absent_until_it_is_overridden():
    class Mine(Method):
        def steer(self, p, step):
            return step

        @only_if(lambda self: self.phase == 1)
        def observe(self, p, taps, query, y, weight):
            return {}

    assert Method().steer is None
    assert Mine().steer({}, {"a": 1}) == {"a": 1}
    assert Mine().observe is None
    assert Mine().at(phase=1).observe.__name__ == "observe"
    assert is_optional(Method, "steer")
    assert not is_optional(Method, "params")


def test_a_plug_in_error_names_the_file(tmp_path):
    with pytest.raises(PluginError, match=r"nothing\.py: cannot be read"):
        check.find(tmp_path / "nothing.py")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "expected auto, cpu, cuda or cuda:N, found 'tpu'"),
        ("mps", "expected auto, cpu, cuda or cuda:N, found 'mps'"),
        ("cuda", "'cuda' does not exist: torch finds no GPU"),
    ],
)
def test_an_unknown_or_absent_device_is_one_message_and_exit_code_2(device, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([str(write(tmp_path)), "--device", device]) == check.MISTAKE
    printed = capsys.readouterr()
    assert printed.err == f"error: --device: {message}\n"
    assert printed.out == ""
