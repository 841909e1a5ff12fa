"""Accelerated `diffusers` pipelines together with what else is done to them: adapters, offloading, casting, compiling, callbacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import attach_align_device_hook  # type: ignore[import-untyped]
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.compiling import UNCOMPILED
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.presets import SafeConfig
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.painting import CONTEXT
from safe_dit_engine.tokens.partition import PartitionConfig

from ..support.diffusers_pipelines import FAMILIES, MANY, STEPS, Tiny, euler, graph, lets_skip, noise, selective, text, tiny_of, weighted
from .test_host import TOLERANCE, differences, shown

UNREAD = "The model's attention could not be read; the map comes from the guidance signal alone."
CPU = torch.device("cpu")


def holds(tiny: Tiny, least: int = 3) -> None:
    """Identity with nothing to skip, rows left out and steps skipped without a word, and the same pipeline again after `remove()`."""
    plain, before = tiny.sample(), graph(tiny.pipe, identity=False)
    with apply(tiny.pipe, selective(interval=1)):
        assert torch.equal(tiny.sample(), plain)
    dense = {STEPS: plain, MANY: tiny.sample(num_inference_steps=MANY)}
    for config, kind, steps in ((selective(), "selective", STEPS), ("balanced", "skipped", MANY)):
        with apply(tiny.pipe, config) as safe:
            found = tiny.sample(num_inference_steps=steps)
        report = safe.report()
        assert report.counts()[kind] >= least and report.notes == []
        assert torch.isfinite(found).all() and not torch.equal(found, dense[steps])
    assert graph(tiny.pipe, identity=False) == before and torch.equal(tiny.sample(), plain)


# Adapters


def adapted(tiny: Tiny, fused: bool) -> None:
    """A LoRA adapter of random numbers on every linear layer of the transformer."""
    transformer = tiny.pipe.transformer
    layers = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    torch.manual_seed(3)
    config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=layers)
    if hasattr(transformer, "add_adapter"):
        transformer.add_adapter(config)
    else:  # no loader of diffusers' own for these
        inject_adapter_in_model(config, transformer)
    if fused:
        for module in transformer.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()


@pytest.mark.parametrize("fused", [False, True], ids=["adapter", "fused"])
@pytest.mark.parametrize("name", FAMILIES)
def test_lora(name: str, fused: bool, record_property: Callable[[str, object], None]) -> None:
    tiny = tiny_of(name)
    lets_skip(tiny)
    without = tiny.sample()
    adapted(tiny, fused)
    assert not torch.equal(tiny.sample(), without)
    holds(tiny)
    found = differences(tiny, selective())
    subset = [difference / value for kind, difference, value in found if kind == "selective"]
    record_property("largest_difference", max(subset))
    assert max(subset) <= TOLERANCE


def test_the_scale_of_an_adapter() -> None:
    tiny = tiny_of("sd3")
    adapted(tiny, fused=False)
    full = tiny.sample()
    tiny.inputs["joint_attention_kwargs"] = {"scale": 0.5}
    assert not torch.equal(tiny.sample(), full)
    holds(tiny)
    assert max(difference / value for _, difference, value in differences(tiny, selective())) <= TOLERANCE


# Where weights are, and in which type


def device_hooks(tiny: Tiny) -> None:
    """`accelerate`'s hooks around `forward` of every module, as of a model spread over devices."""
    attach_align_device_hook(tiny.pipe.transformer, execution_device=CPU, offload=False)


def by_blocks(tiny: Tiny) -> None:
    tiny.pipe.transformer.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


def by_layers(tiny: Tiny) -> None:
    tiny.pipe.transformer.enable_group_offload(CPU, CPU, offload_type="leaf_level")


def layerwise(tiny: Tiny) -> None:
    tiny.pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def whole_models(tiny: Tiny) -> None:
    """Takes its hooks off and puts others on at the end of every call."""
    tiny.pipe.enable_model_cpu_offload(device="cpu")


@pytest.mark.parametrize("prepare", [device_hooks, by_blocks, by_layers, layerwise, whole_models])
@pytest.mark.parametrize("name", ["sd3", "flux, true cfg", "lumina-next", "z-image", "wan"])
def test_offloading_and_casting(name: str, prepare: Callable[[Tiny], None]) -> None:
    tiny = tiny_of(name)
    prepare(tiny)
    holds(tiny)


def test_offloading_a_whole_model_keeps_its_hooks() -> None:
    """They are made anew while ours stand around them; ours go all the same."""
    tiny = tiny_of("sd3")
    whole_models(tiny)
    with apply(tiny.pipe, "balanced") as safe:
        for _ in range(2):
            tiny.sample(num_inference_steps=MANY)
            assert safe.report().counts()["skipped"] == 9
            assert isinstance(vars(tiny.pipe.transformer)["forward"], partial) and "step" not in vars(tiny.pipe.scheduler)
    tiny.pipe.remove_all_hooks()
    assert tiny.pipe.transformer.forward.__func__ is type(tiny.pipe.transformer).forward


def test_bfloat16(tiny_in_half: Tiny) -> None:
    holds(tiny_in_half)


@pytest.fixture(params=["sd3", "flux", "z-image", "qwen"])
def tiny_in_half(request: pytest.FixtureRequest) -> Tiny:
    tiny = tiny_of(request.param)
    tiny.pipe.to(torch.bfloat16)
    tiny.inputs = {name: _halved(value) for name, value in tiny.inputs.items()}
    return tiny


def _halved(value: Any) -> Any:
    if isinstance(value, list):
        return [_halved(part) for part in value]
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


# Two transformers


def wan_2_2(boundary: float = 0.7) -> Tiny:
    """The second transformer computes the steps of little noise, with another guidance scale."""
    tiny, other = tiny_of("wan"), tiny_of("wan")
    for weight in other.pipe.transformer.parameters():
        weight.data.mul_(1.05)
    pipe = diffusers.WanPipeline(
        None, None, None, tiny.pipe.scheduler, tiny.pipe.transformer, other.pipe.transformer, boundary_ratio=boundary
    )
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, {**tiny.inputs, "guidance_scale_2": 2.5})


def test_two_transformers() -> None:
    tiny = wan_2_2()
    called: list[bool] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: called.append(module is tiny.pipe.transformer_2))
        for module in (tiny.pipe.transformer, tiny.pipe.transformer_2)
    ]
    holds(tiny, least=2)  # the first evaluation of the second one is computed
    called.clear()
    with apply(tiny.pipe, selective()) as safe:
        tiny.sample()
    for handle in handles:
        handle.remove()
    seconds, kinds = called[::2], [record.kind.value for record in safe.report().evaluations]
    first = seconds.index(True)
    assert seconds == sorted(seconds) and 2 < first < STEPS - 2
    assert kinds[first] == "refresh" and "selective" in kinds[2:first] and "selective" in kinds[first:]


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_two_transformers_leave_rows_out_exactly(part: str) -> None:
    """Rows left out are those of the same transformer's refresh."""
    tiny = wan_2_2()
    with apply(tiny.pipe, selective()) as safe, shown(getattr(tiny.pipe, part), safe) as found:
        tiny.sample()
    subset = [difference / value for kind, difference, value in found if kind == "selective"]
    assert len(subset) >= 4 and max(subset) <= TOLERANCE


def test_each_of_two_transformers_is_guided_by_its_own_scale() -> None:
    tiny = wan_2_2()
    tiny.inputs |= {"guidance_scale": 5.0, "guidance_scale_2": 5.0}
    plain = tiny.sample()
    with apply(tiny.pipe, SafeConfig(partition=PartitionConfig(warmup_steps=2), guidance=GuidanceConfig(5.0, 5.0))) as safe:
        found = tiny.sample()
    assert safe.report().guided and (found - plain).abs().max() <= 1e-5 * plain.abs().max()


# Callbacks


def test_guidance_switched_off_on_the_way() -> None:
    """A callback well known: from some step on one cond alone is computed."""
    tiny = tiny_of("sd3")

    def switch(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            pipe._guidance_scale = 0.0
            values = {name: value.chunk(2)[-1] for name, value in values.items()}
        return values

    tiny.inputs |= {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["prompt_embeds", "pooled_prompt_embeds"]}
    holds(tiny)


def test_a_call_that_is_interrupted() -> None:
    tiny = tiny_of("sd3")
    plain = tiny.sample()

    def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 4
        return values

    with apply(tiny.pipe, selective()) as safe:
        tiny.sample(callback_on_step_end=interrupt)
        assert len(safe.report().evaluations) == 5
        tiny.sample()
        assert len(safe.report().evaluations) == STEPS
    assert torch.equal(tiny.sample(), plain)


# Memory


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError("no memory"), torch.AcceleratorError("CUDA error: out of memory")])
def test_memory_that_runs_out_between_the_conds_of_a_step(raised: Exception) -> None:
    """The first was computed in part, the second cannot be: no difference of the two guides; the last prediction is reused once more."""
    tiny, calls = tiny_of("qwen"), 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise raised

    handle = tiny.pipe.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    with apply(tiny.pipe, selective()) as safe:
        found = tiny.sample(num_inference_steps=6)
    handle.remove()
    assert len([note for note in safe.report().notes if "memory ran out" in note]) == 1
    skipping = ScheduleConfig(refresh_interval=3, skipped_steps=1)
    with apply(tiny.pipe, SafeConfig(partition=selective().partition, schedule=skipping)) as safe:
        assert torch.equal(tiny.sample(num_inference_steps=6), found)
    assert [record.kind.value for record in safe.report().evaluations] == ["warmup", "warmup", "selective", "skipped", "refresh", "refresh"]


# Compiled, cached, in the middle


def test_compiled_models_are_guided_by_the_map_of_their_conds() -> None:
    tiny = tiny_of("sd3")
    torch._dynamo.reset()
    tiny.pipe.transformer.compile(backend="eager")
    plain = tiny.sample(num_inference_steps=MANY)
    config = SafeConfig(partition=PartitionConfig(warmup_steps=2), guidance=GuidanceConfig(4.0, 9.0))
    with apply(tiny.pipe, config) as safe:
        assert not torch.equal(tiny.sample(num_inference_steps=MANY), plain)
    assert safe.report().guided and safe.report().notes == [UNREAD]
    torch._dynamo.reset()


def test_all_tokens_painted_as_context_run_in_full() -> None:
    """One token would be computed, and the logarithm of 1 is no scale: Lumina-Next's attention is scaled by the number of rows."""
    tiny = tiny_of("lumina-next")
    plain = tiny.sample(num_inference_steps=MANY)
    painting = torch.full((8, 10), CONTEXT, dtype=torch.uint8)
    partition = PartitionConfig(warmup_steps=2, painting=painting)
    with apply(tiny.pipe, SafeConfig(partition=partition, schedule=ScheduleConfig())) as safe:
        assert torch.equal(tiny.sample(num_inference_steps=MANY), plain)
    reason = "a single token is to be computed, and attention may be scaled by their number"
    assert safe.report().notes[-1] == f"Computed in full, because {reason}."


def test_skip_layer_guidance_runs_in_full() -> None:
    tiny = tiny_of("sd3")
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    plain = tiny.sample(**skipping)
    with apply(tiny.pipe, selective()) as safe:
        found = tiny.sample(**skipping)
    report = safe.report()
    assert report.notes == ["Computed in full, because skip-layer guidance leaves out blocks."]
    assert torch.equal(found, plain)


def compiled(module: Any, way: str) -> Any:
    """The transformer compiled, with a backend that generates no code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if way == "torch.compile":
        return torch.compile(module, backend="eager")
    for part in [module] if way == "compile" else module.transformer_blocks:
        part.compile(backend="eager")
    return module


@pytest.mark.parametrize("way", ["compile", "blocks", "torch.compile"])
def test_compiled_models(way: str) -> None:
    """Parts of steps run as if the model were not compiled, and nothing is compiled for them; whole steps keep it."""
    tiny = tiny_of("sd3")
    plain = tiny.sample(num_inference_steps=MANY)
    with apply(tiny.pipe, selective()):
        parts = tiny.sample(num_inference_steps=MANY)
    tiny.pipe.transformer = compiled(tiny.pipe.transformer, way)
    with apply(tiny.pipe, selective()) as safe:
        assert torch.equal(tiny.sample(num_inference_steps=MANY), parts)
        assert safe.report().notes == [UNCOMPILED] and safe.report().counts()["selective"] > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    with apply(tiny.pipe, "balanced") as safe:
        assert not torch.equal(tiny.sample(num_inference_steps=MANY), plain)
        assert safe.report().counts()["skipped"] == 9 and safe.report().notes == []
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert torch.equal(tiny.sample(num_inference_steps=MANY), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing is compiled again"
    torch._dynamo.reset()


def test_a_compiled_graph_stays_whole() -> None:
    """`fullgraph` fails at the first break; with whole steps skipped, the same one graph serves them all."""
    tiny = tiny_of("sd3")
    with apply(tiny.pipe, "balanced"):
        eager = tiny.sample(num_inference_steps=MANY)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tiny.pipe.transformer.compile(backend="eager", fullgraph=True)
    plain = tiny.sample(num_inference_steps=MANY)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with apply(tiny.pipe, "balanced") as safe:
        found = tiny.sample(num_inference_steps=MANY)
    assert safe.report().counts()["skipped"] == 9 and graphs == 1 == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.allclose(found, eager, atol=1e-4) and not torch.equal(found, plain)
    torch._dynamo.reset()


def test_kept_keys_of_the_prompt_run_in_full_where_rows_would_be_left_out() -> None:
    tiny = tiny_of("qwen")
    tiny.pipe.transformer.enable_cache(diffusers.TextKVCacheConfig())
    with apply(tiny.pipe, selective()) as safe:
        tiny.sample()
    assert safe.report().notes == ["Computed in full, because a cache of diffusers' own works on the transformer's blocks.", UNREAD]
    assert safe.report().counts() == {"warmup": 2, "refresh": 8}
    with apply(tiny.pipe, "balanced") as safe:
        tiny.sample(num_inference_steps=MANY)
    assert safe.report().counts()["skipped"] == 10 and not safe.report().notes


def test_image_to_image_begins_in_the_middle() -> None:
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32, "shift_factor": 0.0}
    vae = weighted(diffusers.AutoencoderKL(**sizes))
    transformer = tiny_of("sd3").pipe.transformer
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(transformer, euler(), vae, *[None] * 6)
    pipe.set_progress_bar_config(disable=True)
    tiny = Tiny(pipe, {**text(pooled=True), "image": noise(7, 1, 4, 16, 20), "strength": 0.7})
    small = {"height": 16, "width": 20, "num_inference_steps": 12}
    plain = tiny.sample(**small)
    with apply(pipe, selective(1.0)):
        assert torch.equal(tiny.sample(**small), plain)
    with apply(pipe, "balanced") as safe:
        tiny.sample(**small)
    # By its noise level the picture is almost half done when the run begins: no more warm-up than the first step.
    assert safe.report().total_steps == 9 and safe.report().counts() == {"warmup": 1, "skipped": 4, "refresh": 4}


def test_callbacks_and_a_second_size() -> None:
    tiny = tiny_of("flux")
    steps: list[int] = []

    def note(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return values

    with apply(tiny.pipe, "balanced") as safe:
        tiny.sample(callback_on_step_end=note)
        small = tiny.sample(height=64, width=64, num_inference_steps=7)
        assert steps == list(range(STEPS)) and small.shape[1] == 16
        assert safe.report().total_steps == 7
