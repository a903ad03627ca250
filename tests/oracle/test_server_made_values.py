"""A server that makes values for each client has no global model, and no client's values replace it."""

from __future__ import annotations

from dataclasses import dataclass

import tiny
import torch

from fedbench.method import InputPrompt, Param, linear_head


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
