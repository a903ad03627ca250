"""A server that makes values for each client has no global model, and no client's values replace it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny
import torch

from fedbench.method import HookError, InputPrompt, Param, linear_head


@dataclass(frozen=True)
class Generated(InputPrompt):
    """Each client gets the server's prompt plus its number."""

    def params(self, task):
        """A shared prompt and head."""
        return self.prompt_param(task) | linear_head(task)

    def send(self, server, clients):
        """Other values for each client."""
        return {"prompt": server["prompt"] + clients.view(-1, 1, 1)}


@dataclass(frozen=True)
class ReadOnly(Generated):
    """The same with values that clients do not train."""

    def params(self, task):
        """Clients only read the prompt that is made for them."""
        prompt = Param(task.prompt_init("prompt", self.prompt_length, task.width), home="local", trained=False)
        return {"base": Param(prompt.init, "server_only"), "prompt": prompt} | linear_head(task)

    def send(self, server, clients):
        """Other values for each client."""
        return {"prompt": server["base"] + clients.view(-1, 1, 1)}


def test_there_is_no_global_model_where_the_server_makes_each_clients_values() -> None:
    for method in (Generated(), ReadOnly(), tiny.plugins().classes["method"]["pfedpg"]()):
        assert tiny.mini_run(method).server.unseen_client() is None


def test_an_unknown_client_has_a_uniform_prior_and_initial_values() -> None:
    small = tiny.mini_run(tiny.plugins().classes["method"]["pep_fedpt"]())
    unknown = small.server.unseen_client()
    assert unknown is not None
    torch.testing.assert_close(unknown["prior"], torch.full((1, tiny.CLASSES), 1 / tiny.CLASSES, dtype=torch.float64))
    assert not torch.allclose(small.server.send(torch.tensor([0]))["prior"], unknown["prior"])
    for name in ("prompt", "class_prompt", "head.weight"):
        assert torch.equal(unknown[name][0], small.server.values[name])


def test_a_clients_values_take_as_many_bytes_as_their_precision_says() -> None:
    method = tiny.plugins().classes["method"]["fedvpt"](prompt_length=3)
    numbers = 3 * 32 + tiny.CLASSES * 32 + tiny.CLASSES
    assert tiny.mini_run(method, dtype=torch.float64).server.row_bytes() == 8 * numbers
    assert tiny.mini_run(method, dtype=torch.float32).server.row_bytes() == 4 * numbers


ZERO = torch.zeros(())
PROTOTYPE = (tiny.CLASSES, 32)  # the server's, so its shape may change; `prompt` is averaged, so its shape may not


@pytest.mark.parametrize(
    ("made", "rows", "stacked", "fault"),
    [
        ({"prompt": ZERO.expand(8, 32)}, 0, False, ""),
        ({"prototype": ZERO.expand(7)}, 0, False, ""),
        ({"prompt": ZERO.expand(3, 8, 32)}, 3, True, ""),
        ({"prototype": ZERO.expand(3, 7)}, 3, True, ""),
        ({"prompt": ZERO.expand(8, 31)}, 0, False, "'prompt' expected [8, 32], found [8, 31]"),
        ({"prompt": ZERO.expand(3, 9, 32)}, 3, True, "'prompt' expected [3, 8, 32], found [3, 9, 32]"),
        ({"prompt": ZERO.expand(2, 8, 32)}, 3, True, "'prompt' expected [3, 8, 32], found [2, 8, 32]"),
        (
            {"prototype": ZERO.expand(2, *PROTOTYPE)},
            3,
            True,
            f"'prototype' expected {[3, *PROTOTYPE]}, found {[2, *PROTOTYPE]}",
        ),
        ({"prototype": 5}, 0, False, f"'prototype' expected {list(PROTOTYPE)}, found int"),
        ([ZERO], 0, False, "expected {name: tensor}, found list"),
        ({"promt": ZERO}, 0, False, "'promt' is not one of params(): prompt, class_prompt, "),
    ],
)
def test_what_a_hook_returns_is_checked_against_its_declaration(made, rows, stacked, fault) -> None:
    server = tiny.mini_run(tiny.plugins().classes["method"]["pep_fedpt"]()).server
    if not fault:
        assert server._declared(server.method.merge, made, rows, stacked) is made
        return
    with pytest.raises(HookError) as error:
        server._declared(server.method.merge, made, rows, stacked)
    assert f"(): {fault}" in str(error.value)
