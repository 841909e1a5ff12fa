"""DESIGN's promises through ComfyUI's real KSampler: identity, exactness, off means off, composition."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .conftest import described

SELECTIVE = "selective"
PART = "Computed in full, because a model call works on a part of the latent: an area of a prompt, a window or a tile."
SCHEDULE = {"refresh_interval": 4, "start_percent": 0.0, "end_percent": 1.0, "forecast": 0.0, "early_refresh": False}


@pytest.fixture(scope="module")
def dense(tiny: Any) -> Tensor:
    """The picture without the pack."""
    return tiny.sample(tiny.model)


# Identity


@pytest.mark.parametrize("forecast", [0.0, 0.6])
@pytest.mark.parametrize(("keep", "interval"), [(1.0, 4), (0.25, 1), (1.0, 1)])
def test_identity_bit_for_bit(tiny: Any, dense: Tensor, keep: float, interval: int, forecast: float) -> None:
    assert torch.equal(tiny.sample(tiny.accelerated(keep, interval, forecast=forecast)), dense)
    assert SELECTIVE not in tiny.report().counts()


def test_the_picture_does_change_when_it_may(tiny: Any) -> None:
    """Without this the identity tests would also pass for a pack that does nothing. Two whole cycles after the warm-up, in ten steps."""
    plain = tiny.sample(tiny.model, steps=10)
    assert not torch.equal(tiny.sample(tiny.accelerated(), steps=10), plain)
    assert tiny.report().counts() == {"warmup": 2, "refresh": 2, "selective": 6}
    assert 0.3 < tiny.report().rows_computed_share < 0.75


def test_a_forecast_changes_what_is_reused(tiny: Any) -> None:
    reused, extrapolated = (tiny.sample(tiny.accelerated(forecast=forecast)) for forecast in (0.0, 0.6))
    assert not torch.equal(reused, extrapolated)


def test_partition_and_masks_alone_change_nothing(tiny: Any, dense: Tensor) -> None:
    model = tiny.comfy.execute("SafeDitMaskElision", model=tiny.model, mode="elide")[0]
    assert torch.equal(tiny.sample(model), dense)
    assert tiny.report().masks.startswith("0 of ") and tiny.report().masks.endswith("nothing to elide")
    model = tiny.comfy.execute("SafeDitPartitioner", model=model, keep_ratio=0.25, signal="both", warmup_steps=2, smoothing=1.0)[0]
    assert torch.equal(tiny.sample(model), dense)
    assert tiny.report().partition.kept == 16


# Exactness


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (16, 24)])
@pytest.mark.parametrize("images", [1, 2])
def test_subset_pass_is_the_full_pass_at_the_same_input(tiny: Any, size: tuple[int, int], images: int) -> None:
    evaluate = evaluator(tiny, size, images)
    first, kind = evaluate(1.0)
    again, again_kind = evaluate(0.9)
    assert (kind, again_kind) == ("warmup", SELECTIVE)
    assert (again - first).abs().max() == 0.0


def test_subset_pass_with_padding_rows(padded: Any) -> None:
    evaluate = evaluator(padded, (16, 24), 2)
    first, again = evaluate(1.0)[0], evaluate(0.9)
    assert again[1] == SELECTIVE
    assert (again[0] - first).abs().max() <= 1e-5


def test_subset_pass_at_an_odd_size(tiny: Any) -> None:
    """Padding to whole patches; other row counts may pick another matrix kernel, so rounding is allowed here."""
    evaluate = evaluator(tiny, (19, 13), 1)
    assert (evaluate(1.0)[0] - evaluate(0.9)[0]).abs().max() <= 1e-5


def test_a_stale_cache_would_be_seen(tiny: Any) -> None:
    """The exactness test can fail: at another input the remembered rows differ."""
    evaluate = evaluator(tiny, (16, 16), 1)
    evaluate(1.0)
    assert (evaluate(0.9, shift=0.1)[0] - evaluator(tiny, (16, 16), 1)(1.0, shift=0.1)[0]).abs().max() > 1e-3


def evaluator(tiny: Any, size: tuple[int, int], images: int) -> Callable[..., tuple[Tensor, str]]:
    """Model calls inside one run, at a fixed (x, t) whatever sigma the run is told."""
    host, live, run = (tiny.comfy.engine(name) for name in ("hosts.comfy.wrappers", "hosts.comfy.sampling", "run"))
    model = tiny.accelerated(keep=0.3, warmup=1)
    base = tiny.model.model
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2 * images, 16, *size, generator=generator)
    text = torch.randn(2 * images, 40, 64, generator=generator)
    state = live.Sampling(run.Run(host.config_of(model), base.diffusion_model, [1.0, 0.9, 0.8, 0.0], (images, 16, *size), (0, 3)))
    options = {host.RUN: state, "uuids": ["a", "b"], "cond_or_uncond": [1, 0], "wrappers": {"apply_model": {"k": [host.apply_model]}}}

    def evaluate(sigma: float, shift: float = 0.0) -> tuple[Tensor, str]:
        with state.run.evaluate(sigma) as evaluation, torch.inference_mode():
            evaluation.begin_batch(frozenset([0]))
            t = torch.full((2 * images,), 0.7)
            out = base.apply_model(x + shift, t, c_crossattn=text, transformer_options=dict(options), num_tokens=40)
        return out, state.run.report.evaluations[-1].kind.value

    return evaluate


# Off means off


def test_patched_then_plain(tiny: Any, dense: Tensor) -> None:
    tiny.sample(tiny.accelerated())
    assert torch.equal(tiny.sample(tiny.model), dense)
    assert tiny.leftovers() == []


@pytest.mark.parametrize(("failure", "at_call"), [*product(["interrupt", "error"], [1, 4, 6]), ("out of memory", 1)])
def test_nothing_stays_behind_after_a_failure(tiny: Any, dense: Tensor, failure: str, at_call: int) -> None:
    management = importlib.import_module("comfy.model_management")
    raised = {
        "interrupt": management.InterruptProcessingException(),
        "error": RuntimeError("a block failed"),
        "out of memory": torch.OutOfMemoryError("no memory left"),
    }[failure]
    model = tiny.accelerated(warmup=4)  # nothing is remembered or looked at in the first step that could be given up
    failing = fail_at(tiny, at_call, raised)
    with pytest.raises(type(raised)):
        tiny.sample(model)
    failing.remove()
    assert tiny.leftovers() == []
    assert torch.equal(tiny.sample(tiny.model), dense)
    assert torch.equal(tiny.sample(model), tiny.sample(tiny.accelerated(warmup=4)))


def fail_at(tiny: Any, call: int, raised: BaseException) -> Any:
    """Let the second block raise in its `call`-th run."""
    runs = 0

    def hook(*_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == call:
            raise raised

    return tiny.model.model.diffusion_model.layers[1].register_forward_hook(hook)


def test_caches_are_freed_at_the_end(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    module, sampling = tiny.comfy.engine("hosts.comfy.wrappers"), tiny.comfy.engine("hosts.comfy.sampling").Sampling
    monkeypatch.setattr(module, "Sampling", lambda run, *rest: runs.append(run) or sampling(run, *rest))
    tiny.sample(tiny.accelerated())
    assert tiny.report().cache_bytes > 100_000
    assert runs[0].partial.bytes == 0


def test_the_same_model_at_other_sizes_batches_and_steps(tiny: Any) -> None:
    model = tiny.accelerated()
    for changes in ({"size": (24, 16)}, {"images": 2}, {"steps": 5}, {"size": (16, 16)}):
        assert torch.equal(tiny.sample(model, **changes), tiny.sample(tiny.accelerated(), **changes))


def test_applying_the_node_twice_does_not_stack(tiny: Any) -> None:
    twice = tiny.accelerated(model=tiny.accelerated(keep=0.5))
    assert torch.equal(tiny.sample(twice), tiny.sample(tiny.accelerated()))
    assert all(len(found) == 1 for wrappers in twice.wrappers.values() for found in wrappers.values())


# Composition


def split_calls(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ComfyUI think, on every second model evaluation, that cond and uncond do not fit into memory together."""
    calls = 0

    def memory_required(shape: Any, cond_shapes: Any = None) -> float:
        nonlocal calls
        calls += 1
        return float("inf") if shape[0] > 1 and calls % 3 else 0.0

    monkeypatch.setattr(tiny.model.model, "memory_required", memory_required)


@pytest.mark.parametrize("forecast", [0.0, 0.6])
def test_splitting_cond_and_uncond_changes_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch, forecast: float) -> None:
    together = tiny.sample(tiny.accelerated(forecast=forecast))
    split_calls(tiny, monkeypatch)
    apart = tiny.sample(tiny.accelerated(forecast=forecast))
    assert tiny.report().counts()[SELECTIVE] == 4
    assert (together - apart).abs().max() <= 1e-5 * together.abs().max()


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "lcm"])
def test_samplers(tiny: Any, sampler: str) -> None:
    plain = tiny.sample(tiny.model, sampler_name=sampler)
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), sampler_name=sampler), plain)
    almost = tiny.sample(tiny.accelerated(keep=0.95), sampler_name=sampler)
    assert tiny.report().counts()[SELECTIVE] >= 4
    assert relative(almost, plain) < 0.35
    assert relative(almost, plain) < relative(tiny.sample(tiny.accelerated(keep=0.1), sampler_name=sampler), plain)


def relative(picture: Tensor, reference: Tensor) -> float:
    """Root mean square difference over the reference's deviation."""
    return float((picture - reference).pow(2).mean().sqrt() / reference.std())


def test_every_image_of_a_batch_has_its_own_partition(tiny: Any) -> None:
    """Three images in a batch come out as each would alone with the same noise."""
    batch = tiny.sample(tiny.accelerated(), images=3)
    rows = tiny.report().partition.rows
    assert rows.shape == (3, 16)
    assert tiny.report().counts()[SELECTIVE] == 4
    alone = [tiny.sample(tiny.accelerated(), latent_image={"samples": torch.zeros(1, 16, 16, 16), "batch_index": [i]}) for i in range(3)]
    assert (batch - torch.cat(alone)).abs().max() < 1e-3


@pytest.mark.parametrize("tokens", [(40, 24), (16, 48)])
def test_prompts_of_different_length(tiny: Any, tokens: tuple[int, int]) -> None:
    prompts = {"positive": tiny.prompt(1, tokens[0]), "negative": tiny.prompt(2, tokens[1])}
    plain = tiny.sample(tiny.model, **prompts)
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), **prompts), plain)
    assert relative(tiny.sample(tiny.accelerated(keep=0.95), **prompts), plain) < 0.35
    assert tiny.report().counts()[SELECTIVE] == 4


def test_cfg_one(tiny: Any) -> None:
    plain = tiny.sample(tiny.model, cfg=1.0)
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), cfg=1.0), plain)
    tiny.sample(tiny.accelerated(), cfg=1.0)
    assert tiny.report().counts()[SELECTIVE] == 4


def test_img2img(tiny: Any) -> None:
    latent = {"samples": torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(9))}
    plain = tiny.sample(tiny.model, latent_image=latent, denoise=0.6)
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), latent_image=latent, denoise=0.6), plain)
    assert relative(tiny.sample(tiny.accelerated(keep=0.95), latent_image=latent, denoise=0.6), plain) < 0.35
    assert tiny.report().counts()[SELECTIVE] == 4


def test_inpainting_keeps_what_is_outside_the_mask(tiny: Any) -> None:
    samples = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:100, 40:100] = 1.0
    latent = {"samples": samples, "noise_mask": mask}
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), latent_image=latent), tiny.sample(tiny.model, latent_image=latent))
    painted = tiny.sample(tiny.accelerated(), latent_image=latent)
    assert tiny.report().counts()[SELECTIVE] == 4
    assert torch.allclose(painted[..., :4, :], samples[..., :4, :], atol=1e-5)
    assert not torch.allclose(painted[..., 6:11, 6:11], samples[..., 6:11, 6:11], atol=1e-1)


def test_painted_mask_of_any_size_is_always_computed(tiny: Any) -> None:
    mask = torch.zeros(1, 100, 60)
    mask[:, :50] = 1.0
    inputs = {"keep_ratio": 0.1, "signal": "attention", "warmup_steps": 2, "smoothing": 0.0}
    model = tiny.comfy.execute("SafeDitPartitioner", model=tiny.accelerated(), mask=mask, **inputs)[0]
    tiny.sample(model)
    partition = tiny.report().partition
    assert partition.kept == 32
    assert partition.sensitive.view(8, 8)[:4].all()


def test_four_nodes_do_what_accelerate_does(tiny: Any) -> None:
    comfy = tiny.comfy
    comfy.load_extra("nodes_custom_sampler.py")
    model = comfy.execute("SafeDitMaskElision", model=tiny.model, mode="elide")[0]
    model = comfy.execute("SafeDitPartitioner", model=model, keep_ratio=0.25, signal="attention", warmup_steps=2, smoothing=0.7)[0]
    sampler = comfy.execute("SafeDitSelectiveSampler", **SCHEDULE)[0]
    assert torch.equal(advanced(tiny, model, sampler), tiny.sample(tiny.accelerated()))


def advanced(tiny: Any, model: Any, sampler: Any, guider: Any = None, sigmas: Tensor | None = None) -> Tensor:
    """Latent after SamplerCustomAdvanced."""
    comfy = tiny.comfy
    if guider is None:
        guider = comfy.execute("CFGGuider", model=model, positive=tiny.prompt(1), negative=tiny.prompt(2), cfg=4.0)[0]
    if sigmas is None:
        sigmas = comfy.execute("BasicScheduler", model=model, scheduler="simple", steps=8, denoise=1.0)[0]
    noise = comfy.execute("RandomNoise", noise_seed=3)[0]
    with torch.inference_mode(), tiny.executing("sampler"):
        inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
        empty = {"samples": torch.zeros(1, 16, 16, 16)}
        latent: dict[str, Tensor] = comfy.execute("SamplerCustomAdvanced", latent_image=empty, **inputs)[0]
    return latent["samples"]


def test_a_guider_used_twice(tiny: Any) -> None:
    comfy = tiny.comfy
    comfy.load_extra("nodes_custom_sampler.py")
    model = tiny.accelerated()
    sampler = comfy.execute("KSamplerSelect", sampler_name="euler")[0]
    guider = comfy.execute("CFGGuider", model=model, positive=tiny.prompt(1), negative=tiny.prompt(2), cfg=4.0)[0]
    assert torch.equal(advanced(tiny, model, sampler, guider), advanced(tiny, model, sampler, guider))
    assert guider.model_options is model.model_options


def test_selective_sampler_without_a_partitioner_says_so(tiny: Any, dense: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    tiny.comfy.load_extra("nodes_custom_sampler.py")
    sampler = tiny.comfy.execute("SafeDitSelectiveSampler", **SCHEDULE)[0]
    with caplog.at_level("WARNING", "safe_dit"):
        assert torch.equal(advanced(tiny, tiny.model, sampler), dense)
    assert "without a Prompt Token Partitioner" in caplog.text


def test_selective_window(tiny: Any) -> None:
    tiny.comfy.load_extra("nodes_custom_sampler.py")
    sampler = tiny.comfy.execute("SafeDitSelectiveSampler", **{**SCHEDULE, "refresh_interval": 64, "end_percent": 0.5})[0]
    advanced(tiny, tiny.accelerated(), sampler)
    kinds = [record.kind.value for record in tiny.report().evaluations]
    assert kinds[-1] == "refresh" and SELECTIVE in kinds
    assert kinds.index("refresh") > max(i for i, kind in enumerate(kinds) if kind == SELECTIVE)


# Guidance


def weighted(tiny: Any, context: float, sensitive: float, **changes: Any) -> Tensor:
    model = tiny.comfy.execute("SafeDitSensitivityCFG", model=tiny.model, context_scale=context, sensitive_scale=sensitive)[0]
    picture: Tensor = tiny.sample(model, **changes)
    return picture


def test_equal_scales_are_plain_guidance(tiny: Any, dense: Tensor) -> None:
    assert torch.equal(weighted(tiny, 4.0, 4.0), dense)
    assert not torch.equal(weighted(tiny, 4.0, 6.0), dense)
    assert tiny.report().guided


def test_guidance_has_nothing_to_do_at_cfg_one(tiny: Any) -> None:
    assert torch.equal(weighted(tiny, 4.0, 6.0, cfg=1.0), tiny.sample(tiny.model, cfg=1.0))
    weighted(tiny, 4.0, 6.0, cfg=1.0)
    assert any("nothing to weight" in note for note in tiny.report().notes)


# Where selective updates do not fit: computed in full, with the reason


def test_model_patches_that_need_full_length(tiny: Any) -> None:
    model = tiny.model.clone()
    model.set_model_patch(lambda arguments: {}, "double_block")
    assert torch.equal(tiny.sample(tiny.accelerated(model=model)), tiny.sample(model))
    assert tiny.report().notes == ["Computed in full, because a model patch (`double_block`) works on the image at full length."]


@pytest.mark.parametrize("adds", [False, True], ids=["which adds nothing", "which adds"])
def test_control_net(tiny: Any, adds: bool) -> None:
    """NextDiT takes nothing from a ControlNet; the families that do are in test_joint_attention.py."""

    class Given(importlib.import_module("comfy.controlnet").ControlBase):  # type: ignore[misc]
        def get_control(self, *_: Any) -> dict[str, list[Tensor]]:
            return {"input": [torch.ones(1, 64, 96)] if adds else [], "middle": [], "output": []}

    extras = {"control": Given(), "control_apply_to_uncond": True}
    prompts = {"positive": tiny.prompt(1, **extras), "negative": tiny.prompt(2, **extras)}
    picture = tiny.sample(tiny.accelerated(), **prompts)
    assert tiny.report().notes == (["Computed in full, because a ControlNet adds to the image at full length."] if adds else [])
    assert torch.equal(picture, tiny.sample(tiny.model, **prompts) if adds else tiny.sample(tiny.accelerated()))


def test_area_conditioning(tiny: Any) -> None:
    cropped = tiny.prompt(5, area=(8, 8, 4, 4), strength=1.0)
    prompts = {"positive": tiny.prompt(1) + cropped}
    assert torch.equal(tiny.sample(tiny.accelerated(keep=1.0), **prompts), tiny.sample(tiny.model, **prompts))
    assert torch.isfinite(tiny.sample(tiny.accelerated(), **prompts)).all()
    assert tiny.report().notes == [PART]


def test_reference_latents(padded: Any) -> None:
    prompts = {"positive": padded.prompt(1, reference_latents=[torch.zeros(1, 16, 16, 16)])}
    assert torch.equal(padded.sample(padded.accelerated(), **prompts), padded.sample(padded.model, **prompts))
    padded.sample(padded.accelerated(), **prompts)
    assert "Computed in full, because reference latents change the token layout." in padded.report().notes


def test_an_unknown_model_runs_in_full_and_is_named(tiny: Any) -> None:
    assert "`Linear` is not supported yet" in described(tiny.comfy, torch.nn.Linear(2, 2)).reason


def test_a_model_that_no_longer_fits_is_found_before_sampling(tiny: Any, dense: Tensor) -> None:
    module = tiny.model.model.diffusion_model
    head = module.final_layer
    try:
        del module.final_layer
        assert "it has no `final_layer`" in described(tiny.comfy, module).reason
    finally:
        module.final_layer = head
    assert described(tiny.comfy, module).backbone is not None


# Attention override


def test_override_chains_and_rules_on_masks(tiny: Any) -> None:
    attention = importlib.import_module("comfy.ldm.modules.attention").attention_pytorch
    override, masks = tiny.comfy.engine("hosts.comfy.attention").AttentionOverride, tiny.comfy.engine("masks.ledger")
    seen: list[Any] = []

    def sage(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
        seen.append(mask)
        return func(q, k, v, heads, mask=mask, **kwargs)

    q, k, v = (torch.randn(1, 6, 8) for _ in range(3))
    plain = attention(q, k, v, 2)
    ledger = masks.MaskLedger()
    options = {"optimized_attention_override": override(ledger, None, sage)}
    zeros, causal = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    assert torch.equal(attention(q, k, v, 2, zeros, transformer_options=options), plain)
    assert torch.equal(attention(q, k, v, 2, mask=zeros, transformer_options=options), plain)
    kept = attention(q, k, v, 2, causal, transformer_options=options)
    assert torch.equal(kept, attention(q, k, v, 2, causal)) and not torch.equal(kept, plain)
    assert seen[:2] == [None, None] and seen[2] is causal
    assert (ledger.calls, ledger.masked, ledger.elided) == (3, 3, 2)


@pytest.fixture
def lora(tiny: Any) -> Iterator[str]:
    """A file of small random weights for attention and feed-forward, in ComfyUI's folder of LoRAs."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in tiny.model.model.diffusion_model.state_dict().items():
        if name.endswith(("qkv.weight", "out.weight", "w2.weight")):
            key, (rows, columns) = f"diffusion_model.{name.removesuffix('.weight')}", value.shape
            weights[f"{key}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            weights[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    folder = Path(importlib.import_module("folder_paths").get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.safetensors"
    importlib.import_module("safetensors.torch").save_file(weights, file)
    yield file.name
    file.unlink()


@pytest.mark.parametrize("first", ["lora", "pack"])
def test_lora_before_and_after_the_node(tiny: Any, dense: Tensor, lora: str, first: str) -> None:
    def with_lora(model: Any) -> Any:
        return tiny.comfy.execute("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]

    def accelerated(interval: int) -> Any:
        if first == "lora":
            return tiny.accelerated(interval=interval, model=with_lora(tiny.model))
        return with_lora(tiny.accelerated(interval=interval))

    styled = tiny.sample(with_lora(tiny.model))
    assert not torch.allclose(styled, dense, atol=1e-2)
    assert torch.equal(tiny.sample(accelerated(1)), styled)
    found = tiny.sample(accelerated(4))
    assert tiny.report().counts()[SELECTIVE] == 4 and tiny.report().notes == []
    assert relative(found, styled) < relative(found, dense)
    assert torch.equal(tiny.sample(tiny.model), dense)


@pytest.mark.parametrize(("preset", "kind"), [("balanced", "skipped"), ("express", "coarse")])
def test_lora_and_presets(tiny: Any, lora: str, preset: str, kind: str) -> None:
    def with_lora(model: Any) -> Any:
        return tiny.comfy.execute("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]

    def accelerated(model: Any) -> Any:
        unused = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 4, "forecast": 0.45, "early_refresh": False}
        return tiny.comfy.execute("SafeDitAccelerate", model=model, preset=preset, **unused)[0]

    changes: dict[str, Any] = {"steps": 20, "size": (64, 64)}
    found = tiny.sample(accelerated(with_lora(tiny.model)), **changes)
    assert tiny.report().counts()[kind] > 1 and torch.isfinite(found).all()
    assert torch.equal(tiny.sample(with_lora(accelerated(tiny.model)), **changes), found)
    assert not torch.equal(tiny.sample(accelerated(tiny.model), **changes), found)
