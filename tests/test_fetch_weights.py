"""`fedbench fetch-weights`: which weights are local, which are downloaded, and what is said if they cannot be had."""

import timm
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import _hub

from fedbench.cli import fetch_weights
from fedbench.cli import main as verbs

NAME = "test_vit.r160_in1k"  # timm's smallest ViT, 0.4 million weights
SWEEP = "base: {dataset: digits, partition: iid, method: head_only}\ngrid:\n  backbone: [BACKBONES]\n"


def sweep_of(folder, *backbones):
    path = folder / "mine.yaml"
    path.write_text(SWEEP.replace("BACKBONES", ", ".join(backbones)))
    return str(path)


def weights_in(folder):
    path = folder / "weights.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


def no_network(repo_id, filename, **_):
    raise OSError("no route to the hub")


def test_embedded_backbones_and_files_need_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_hub, "hf_hub_download", no_network)
    path = weights_in(tmp_path)
    sweep = sweep_of(tmp_path, "{name: nano}", f"{{name: {NAME}, weights: '{path}'}}")
    assert verbs.main(["fetch-weights", sweep]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "nano: embedded in fedbench, nothing to fetch",
        f"{NAME}: read from {path}, nothing to fetch",
    ]


def test_weights_are_downloaded_once_for_all_runs_and_image_sizes(tmp_path, monkeypatch, capsys):
    path, requests = weights_in(tmp_path), []

    def download(repo_id, filename, **_):
        requests.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    monkeypatch.setattr(fetch_weights, "try_to_load_from_cache", lambda *_, **__: str(path) if requests else None)
    sweep = sweep_of(tmp_path, f"{{name: {NAME}}}", f"{{name: {NAME}, image_size: 64}}")
    assert verbs.main(["fetch-weights", sweep, "--set", "grid.seed=[0,1]"]) == 0
    assert capsys.readouterr().out == f"{NAME}: downloaded\n"
    assert requests == [(f"timm/{NAME}", "model.safetensors")]
    assert verbs.main(["fetch-weights", sweep]) == 0
    assert capsys.readouterr().out == f"{NAME}: local already\n"


def test_weights_that_cannot_be_had_exit_1_with_the_reason_after_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_hub, "hf_hub_download", no_network)
    monkeypatch.setattr(fetch_weights, "try_to_load_from_cache", lambda *_, **__: None)
    sweep = sweep_of(tmp_path, f"{{name: {NAME}}}", "{name: no_such_vit}", "{name: nano}")
    assert verbs.main(["fetch-weights", sweep]) == 1
    printed = capsys.readouterr()
    assert printed.out == "nano: embedded in fedbench, nothing to fetch\n"
    first, second = printed.err.splitlines()
    assert first.startswith(f"error: {NAME}: ")
    assert "no route to the hub" in first
    assert second.startswith("error: no_such_vit: no timm model is called 'no_such_vit'")


def test_a_mistake_in_the_sweep_file_exits_2(tmp_path, capsys):
    assert verbs.main(["fetch-weights", sweep_of(tmp_path, "{nam: x}")]) == 2
    assert "unknown name 'nam'" in capsys.readouterr().err


def test_the_cache_of_the_hub_is_read_as_timm_fills_it(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not fetch_weights.is_cached(NAME)
    repository = tmp_path / f"models--timm--{NAME}"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "config.json").touch()
    assert not fetch_weights.is_cached(NAME)
    (snapshot / "model.safetensors").touch()
    assert fetch_weights.is_cached(NAME)
