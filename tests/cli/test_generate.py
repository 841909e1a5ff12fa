"""`python -m safe_dit_engine generate` on tiny pipelines that the tests save, text encoders and tokenizers too; nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from safe_dit_engine.__main__ import main
from safe_dit_engine.cli.generate import advice, parse
from safe_dit_engine.cli.generate_pictures import Maker
from safe_dit_engine.hosts.diffusers.loading import TEXTS, Asked, call_arguments
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.report import psnr_db

from ..support.diffusers_pipelines import tiny_of
from ..support.whole_pipelines import flux, pixart

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle"
STEPS = 20
# Flux packs two latents to a side; PixArt takes the nearest of the sizes it was trained with.
SIZES = {"flux": (160, 128), "pixart": (256, 256)}
DRAWN = ["sd3", "flux", "flux, true cfg", "lumina-next", "pixart", "lumina2", "z-image", "qwen"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("models")
    for name, pipe in (("flux", flux()), ("pixart", pixart())):
        pipe.save_pretrained(folder / name)
    return {name: folder / name for name in SIZES}


@pytest.fixture
def copied(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return shutil.copytree(saved["flux"], tmp_path / "copy")


def options(model: Path | str, name: str, out: Path, *others: str) -> list[str]:
    width, height = SIZES[name]
    sizes = ["--width", str(width), "--height", str(height), "--steps", str(STEPS)]
    return ["generate", "--model", str(model), "--device", "cpu", "--out", str(out), *sizes, *others]


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "generate.json").read_text(encoding="utf-8"))
    return found


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.float32) / 255


# Their later steps are so long that `paper` computes all of 20.
IN_FULL = ("sd3", "pixart")
# What presets make of the noise levels that each pipeline gives its scheduler, a letter a step.
PLANS = {
    "balanced": {"flux": "wwwr-r--r--r--r--r-r", "pixart": "wwww-r-r-r-r-r-r-r-r"},
    "paper": {name: "wwwrrsrsrsrsrsrsrsrr" for name in DRAWN} | dict.fromkeys(IN_FULL, "wwwwwwrrrrrrrrrrrrrr"),
}


def planned(name: str, preset: str) -> dict[str, int]:
    """Steps by kind of a preset."""
    kinds = {"w": "warmup", "r": "refresh", "s": "selective", "-": "skipped"}
    plan = PLANS[preset][name]
    return {kinds[letter]: plan.count(letter) for letter in dict.fromkeys(plan)}


# Pictures


@pytest.mark.parametrize(("name", "preset"), [("flux", "balanced"), ("flux", "paper"), ("pixart", "balanced")])
def test_compared(name: str, preset: str, saved: dict[str, Path], tmp_path: Path) -> None:
    assert main(options(saved[name], name, tmp_path, "--prompt", PROMPT, "--seed", "3", "--preset", preset, "--compare")) == 0
    (row,) = result(tmp_path)["rows"]
    assert row["steps_by_kind"] == planned(name, preset) and row["notes"] == [] and row["rows_computed_share"] < 1.0
    assert row["speedup"] == row["seconds_dense"] / row["seconds"]
    ours, dense, both = (pixels(tmp_path / f"001-seed-3{kind}.png") for kind in ("", "-dense", "-both"))
    assert np.array_equal(np.concatenate((dense, ours), axis=1), both)
    assert row["psnr_db"] == pytest.approx(psnr_db(ours, dense), abs=1e-9) and 10 < row["psnr_db"] < 80
    assert row["resolution"] == "x".join(map(str, SIZES[name])) == f"{ours.shape[1]}x{ours.shape[0]}"
    table = (tmp_path / "generate.md").read_text(encoding="utf-8")
    assert f"| 1 | {PROMPT} | 3 |" in table and f"Speedup, median: {row['speedup']:.3g}x." in table


def test_compared_where_nothing_is_left_out(saved: dict[str, Path], tmp_path: Path) -> None:
    """PixArt's steps are long but in the first third, so `paper` computes all of 20."""
    assert main(options(saved["pixart"], "pixart", tmp_path, "--prompt", PROMPT, "--seed", "3", "--preset", "paper", "--compare")) == 0
    (row,) = result(tmp_path)["rows"]
    assert row["steps_by_kind"] == planned("pixart", "paper") and row["rows_computed_share"] == 1.0
    assert row["notes"][0].startswith("Every step is computed, so nothing is saved")
    ours, dense = (pixels(tmp_path / f"001-seed-3{kind}.png") for kind in ("", "-dense"))
    assert abs(ours - dense).max() < 1.01 / 255, "the text's mask is left out, which rounds otherwise"


@pytest.mark.parametrize("name", SIZES)
def test_pictures_are_those_of_the_pipeline(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    assert main(options(saved[name], name, tmp_path, "--prompt", PROMPT, "--seed", "5", "--preset", "fast", "--compare")) == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved[name], local_files_only=True)
    width, height = SIZES[name]

    def sample() -> np.ndarray:
        generator = torch.Generator().manual_seed(5)
        picture = pipe(PROMPT, width=width, height=height, num_inference_steps=STEPS, generator=generator).images[0]
        return np.asarray(picture, np.float32) / 255

    assert np.array_equal(sample(), pixels(tmp_path / "001-seed-5-dense.png"))
    with apply(pipe, "fast"):
        assert np.array_equal(sample(), pixels(tmp_path / "001-seed-5.png"))


def test_nothing_is_left_on_the_pipeline(saved: dict[str, Path], tmp_path: Path) -> None:
    asked = parse(options(saved["flux"], "flux", tmp_path, "--prompt", PROMPT, "--compare")[1:])
    maker = Maker(asked)
    original = type(maker.pipe)
    maker.row(asked.shots[0])
    first = pixels(tmp_path / "001-seed-0-dense.png")
    maker.row(asked.shots[0])
    assert type(maker.pipe) is original is diffusers.FluxPipeline
    assert np.array_equal(pixels(tmp_path / "001-seed-0-dense.png"), first)


def test_prompts_of_a_file_and_seeds_that_follow(saved: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two of them\n\na red circle\n  blue | square \n", encoding="utf-8")
    out = tmp_path / "out"
    asked = ["--prompts", str(prompts), "--seed", "7", "--images", "2", "--negative", "green", "--guidance", "3"]
    assert main(options(saved["pixart"], "pixart", out, *asked)) == 0
    rows = result(out)["rows"]
    assert [(row["number"], row["prompt"], row["seed"]) for row in rows] == [
        (1, PROMPT, 7), (2, PROMPT, 8), (3, "blue | square", 7), (4, "blue | square", 8),
    ]  # fmt: skip
    names = {"001-seed-7.png", "002-seed-8.png", "003-seed-7.png", "004-seed-8.png"}
    assert {path.name for path in out.glob("*.png")} == names == {name for row in rows for name in row["files"]}
    assert all(row["seconds_dense"] is row["psnr_db"] is row["speedup"] is None for row in rows)
    assert "| 3 | blue / square | 7 |" in (out / "generate.md").read_text(encoding="utf-8")
    assert len({(out / name).read_bytes() for name in names}) == 4


# Random weights


def without_weights(name: str, folder: Path) -> Path:
    """A tiny pipeline of a family, of which only configurations are there."""
    pipe = tiny_of(name).pipe
    if name == "pixart":  # with its own, presets leave nothing out of so few steps
        pipe.register_modules(scheduler=diffusers.EulerDiscreteScheduler())
    pipe.save_pretrained(folder)
    weights = list(folder.rglob("*.safetensors"))
    for path in weights:
        path.unlink()
    assert [path.parent.name for path in weights] == ["transformer"]
    if name == "lumina2":  # as it is, it has places for fewer tokens than a prompt may have
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "axes_lens": [512, 64, 64]}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DRAWN)
def test_random_weights(name: str, dtype: str, tmp_path: Path) -> None:
    folder, out = without_weights(name, tmp_path / "model"), tmp_path / "out"
    assert main(options(folder, "flux", out, "--random-weights", "--preset", "paper", "--compare", "--dtype", dtype)) == 0
    found = result(out)
    (row,) = found["rows"]
    assert row["steps_by_kind"] == planned(name, "paper")
    assert [note[:35] for note in row["notes"]] == (["Every step is computed, so nothing "] if name in IN_FULL else [])
    assert row["psnr_db"] is None and row["files"] == [] and not list(out.glob("*.png"))
    assert found["environment"]["random_weights"] and found["environment"]["transformer"] in TEXTS


def test_what_the_engine_has_to_say_is_below_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scheduler that it does not know."""
    folder, out = without_weights("pixart", tmp_path / "model"), tmp_path / "out"
    diffusers.IPNDMScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "IPNDMScheduler"]}), encoding="utf-8")
    assert main(options(folder, "flux", out, "--random-weights", "--images", "2")) == 0
    (first, second) = result(out)["rows"]
    assert first["notes"] == second["notes"] and "`IPNDMScheduler`" in first["notes"][0]
    line = f"- {first['notes'][0]} (2 of 2)"
    assert line in (out / "generate.md").read_text(encoding="utf-8") and line in caplog.text


def test_every_prompt_that_is_known_is_tried() -> None:
    assert {type(tiny_of(name).pipe.transformer).__name__ for name in DRAWN} == set(TEXTS)


def test_random_weights_and_prompts_are_the_same_every_time(tmp_path: Path) -> None:
    folder = without_weights("sd3", tmp_path / "model")
    asked = parse(options(folder, "flux", tmp_path, "--random-weights", "--images", "2", "--dtype", "bfloat16")[1:])
    first, again = ([Maker(asked)._made(shot, "balanced").picture for shot in asked.shots] for _ in range(2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], first[1])
    assert first[0].dtype == torch.bfloat16 and first[0].isfinite().all() and torch.get_default_dtype() == torch.float32


# What a pipeline calls what is asked


def test_guidance_is_what_the_pipeline_calls_it() -> None:
    asked = Asked(steps=4, width=64, guidance=3.0, negative="blue")
    assert call_arguments(tiny_of("sd3").pipe, asked) == {
        "num_inference_steps": 4, "width": 64, "guidance_scale": 3.0, "negative_prompt": "blue",
    }  # fmt: skip
    assert call_arguments(tiny_of("flux").pipe, Asked(guidance=3.0)) == {"guidance_scale": 3.0}
    assert call_arguments(tiny_of("qwen").pipe, Asked(guidance=3.0)) == {"true_cfg_scale": 3.0, "negative_prompt": " "}
    assert call_arguments(tiny_of("qwen").pipe, Asked()) == {}


@pytest.mark.parametrize(("name", "guidance"), [("flux", 3.0), ("flux, true cfg", None), ("sd3", 1.0)])
def test_a_negative_prompt_without_effect_is_refused(name: str, guidance: float | None) -> None:
    with pytest.raises(ValueError, match="`--negative` has no effect"):
        call_arguments(tiny_of(name).pipe, Asked(guidance=guidance, negative="blue"))


# What is missing


def refused(argv: list[str], caplog: pytest.LogCaptureFixture) -> str:
    assert main(argv) == 2
    return caplog.records[-1].getMessage()


def test_a_model_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for model in ("nobody/no-such-model", "a/b/c", str(tmp_path / "none")):
        sentence = refused(options(model, "flux", tmp_path, "--prompt", PROMPT), caplog)
        assert sentence.startswith(f"`{model}` is neither a folder nor in the local cache of models") and "`--download`" in sentence


def test_a_part_of_a_model(saved: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = saved["flux"] / "transformer"
    assert f"`{part}` has no `model_index.json`" in refused(options(part, "flux", tmp_path, "--prompt", PROMPT), caplog)
    weights = part / "diffusion_pytorch_model.safetensors"
    assert f"`{weights}` is a file" in refused(options(weights, "flux", tmp_path, "--prompt", PROMPT), caplog)


def test_a_model_that_lacks_a_part(copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(copied / "text_encoder_2")
    shutil.rmtree(copied / "vae")
    sentence = refused(options(copied, "flux", tmp_path, "--prompt", PROMPT), caplog)
    assert "lacks the folder of" in sentence and "`text_encoder_2`" in sentence and "`vae`" in sentence
    assert "`transformer`" not in sentence


def test_a_model_that_lacks_its_weights(copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    sentence = refused(options(copied, "flux", tmp_path, "--prompt", PROMPT), caplog)
    assert f"The weights of `{copied}` cannot be read" in sentence and "`--random-weights`" in sentence


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "has no `transformer`"),
        ({"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}, "makes videos"),
        ({"_class_name": "NoSuchPipeline", "transformer": ["diffusers", "X"]}, "`NoSuchPipeline` is not in `diffusers`"),
    ],
)
def test_pipelines_that_cannot_be_used(index: dict[str, Any], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert expected in refused(options(tmp_path, "flux", tmp_path, "--prompt", PROMPT), caplog)


def test_random_weights_of_a_family_whose_prompts_are_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "transformer").mkdir()
    sentence = refused(options(tmp_path, "flux", tmp_path, "--random-weights"), caplog)
    assert "does not know what prompts `SanaTransformer2DModel` takes" in sentence and "`--random-weights`" in sentence


def test_what_the_pipeline_refuses(saved: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = options(saved["pixart"], "pixart", tmp_path, "--prompt", PROMPT, "--negative", "blue", "--guidance", "1")
    assert "`--negative` has no effect on this `PixArtSigmaPipeline`" in refused(asked, caplog)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# nothing\n", encoding="utf-8")
    wrong = {
        "there is no prompt": [],
        "has no prompts": ["--prompts", str(empty)],
        "is not a file": ["--prompts", str(tmp_path / "none.txt")],
        "not allowed with": ["--prompts", str(empty), "--prompt", PROMPT],
        "`--offload` moves parts": ["--prompt", PROMPT, "--offload"],
        "give 1 or more": ["--prompt", PROMPT, "--images", "0"],
        "give `--seed` once": ["--prompt", PROMPT, "--images", "2", "--seed", "1", "--seed", "2"],
        "where every prompt is random": ["--random-weights", "--negative", "blue"],
        "invalid choice: 'best'": ["--prompt", PROMPT, "--preset", "best"],
    }
    for expected, asked in wrong.items():
        with pytest.raises(SystemExit) as stopped:
            main(options("anything", "flux", tmp_path, *asked))
        assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    asked = [*options("anything", "flux", tmp_path, "--prompt", PROMPT), "--device", "cuda"]
    done = run_python("-m", "safe_dit_engine", *asked, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "torch finds no GPU here" in done.stderr


# Memory


def test_out_of_memory_is_a_sentence(saved: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Latents of more bytes than there are addresses."""
    side = ["--width", "800000000", "--height", "800000000"]
    assert main([*options(saved["flux"], "flux", tmp_path, "--prompt", PROMPT), *side]) == 1
    assert caplog.records[-1].getMessage().startswith("Out of memory on cpu") and "a smaller `--width`" in caplog.text


def test_advice_names_only_what_is_not_done_already(tmp_path: Path) -> None:
    asked = parse(options("anything", "flux", tmp_path, "--prompt", PROMPT)[1:])
    assert "`--offload`" not in advice(asked) and "`--dtype bfloat16`" in advice(asked)
    asked.device, asked.dtype = "cuda", "bfloat16"
    assert "`--offload`" in advice(asked) and "`--dtype" not in advice(asked)
    asked.offload = True
    assert "`--offload`" not in advice(asked)


# Processes of their own


def run_python(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env={**os.environ, **environment}
    )


def test_without_comfyui(saved: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import json, runpy, sys\n"
        "try:\n    runpy.run_module('safe_dit_engine', run_name='__main__', alter_sys=True)\n"
        "finally:\n    sys.stdout.write(json.dumps(sorted(sys.modules)))"
    )
    done = run_python("-c", code, *options(saved["flux"], "flux", tmp_path, "--prompt", PROMPT, "--compare", "--images", "2"))
    assert done.returncode == 0, done.stderr[-2000:]
    imported = json.loads(done.stdout)
    assert {"diffusers", "safe_dit_engine.cli.generate"} <= set(imported)
    assert not [name for name in imported if name.split(".")[0] in ("comfy", "comfy_api", "comfy_extras", "nodes", "folder_paths")]
    ways = ["warm-up, dense", "warm-up, balanced", *(f"picture {way}" for way in ("1 of 2, balanced", "1 of 2, dense", "2 of 2, dense"))]
    bars = [done.stderr.index(f"{way}:") for way in (*ways, "picture 2 of 2, balanced")]
    assert bars == sorted(bars) and "Speedup, median" in done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_a_model_id_of_the_local_cache(saved: dict[str, Path], tmp_path: Path) -> None:
    """As the hub's client lays it out; and another id, which may be downloaded, but the hub is out of reach."""
    place = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(saved["flux"], place / "snapshots" / "0123abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc", encoding="utf-8")
    hub = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "out"
    done = run_python("-m", "safe_dit_engine", *options("someone/tiny", "flux", out, "--prompt", PROMPT), **hub)
    assert done.returncode == 0, done.stderr[-2000:]
    assert result(out)["rows"][0]["model"] == "someone/tiny" and (out / "001-seed-0.png").is_file()
    done = run_python("-m", "safe_dit_engine", *options("someone/else", "flux", out, "--prompt", PROMPT, "--download"), **hub)
    assert done.returncode == 2 and "it could not be downloaded" in done.stderr and "Traceback" not in done.stderr


def test_without_diffusers(tmp_path: Path) -> None:
    code = "import sys; sys.modules['diffusers'] = None; from safe_dit_engine.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = run_python("-c", code, *options("anything", "flux", tmp_path, "--prompt", PROMPT))
    assert done.returncode == 2 and "`generate` needs the package `diffusers`" in done.stderr
