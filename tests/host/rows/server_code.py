"""Python code that rows run inside the servers, through the host-probe extension."""

UNET = """
from modules import sd_models
model = sd_models.model_data.sd_model
unet = model.model.diffusion_model
"""

# One line: a hash of the bits of every parameter and buffer of the checkpoint.
WEIGHTS = (
    UNET
    + """
import hashlib
digest = hashlib.sha256()
for key, value in model.state_dict().items():
    digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""
)
# Whether the layers carry what the builtin Lora extension would have merged, but for rounding: it merges once
# more, into the same layers, and what was there is put back.
AS_THE_HOST_MERGES = (
    UNET
    + """
import sys, torch
networks = sys.modules['networks']
MARK, worst, carrying = 'network_current_names', 0.0, 0
kinds = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm
with torch.no_grad():
    for layer in model.network_layer_mapping.values():
        if not isinstance(layer, kinds) or not any(
            layer.network_layer_name in net.modules for net in networks.loaded_networks
        ) or not getattr(layer, MARK, ()):
            continue
        kept = {name: value.clone() for name, value in layer.named_parameters(recurse=False)}
        mark = getattr(layer, MARK)
        setattr(layer, MARK, ())
        networks.network_apply_weights(layer)
        carrying += getattr(layer, MARK) == mark
        for name, value in layer.named_parameters(recurse=False):
            difference = (kept[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
            worst = max(worst, difference.item())
            value.copy_(kept[name])
assert carrying or not networks.loaded_networks
print(worst <= {tolerance})
"""
).replace("{tolerance}", "2e-6")
KEEP_WEIGHTS = WEIGHTS + "store['weights'] = digest.hexdigest()\n"
COMPARE_WEIGHTS = WEIGHTS.replace("print(", "print(store['weights'] == ")

# What the tree of modules looks like, without the notes that the builtin Lora extension keeps in it.
TREE = (
    UNET
    + """
import hashlib
lines = []
for name, module in unet.named_modules():
    keys = sorted(key for key in vars(module) if not key.startswith("network_"))
    hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
    lines.append(f"{name} {type(module).__module__}.{type(module).__qualname__} {keys} {hooks}")
print(len(lines), hashlib.sha256("\\n".join(lines).encode()).hexdigest())
"""
)

# What must not stay changed in torch.
TORCH_GLOBALS = """
import torch
print(torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark,
      torch.backends.cuda.matmul.allow_tf32, torch.get_default_dtype(), torch.is_inference_mode_enabled(),
      torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
"""

# As IP-Adapter does: cross-attention modules get another forward on the instance.
ATTENTION_IN = (
    UNET
    + """
def tinted(inner):
    def forward(x, context=None, *args, **kwargs):
        return inner(x, context, *args, **kwargs) + 0.3 * x.flip(1)
    return forward
store['undo'] = []
for block in (unet.input_blocks[4], unet.middle_block, unet.output_blocks[5]):
    attention = block[1].transformer_blocks[0].attn2
    store['undo'].append((attention, attention.forward))
    attention.forward = tinted(attention.forward)
print(len(store['undo']))
"""
)
# As ControlLLLite does: single layers get another forward on the instance.
LEAVES_IN = (
    UNET
    + """
def shifted(inner):
    def forward(x):
        return inner(x + 0.5 * x.flip(1))
    return forward
store['undo'] = []
for block in (unet.input_blocks[4], unet.middle_block):
    attention = block[1].transformer_blocks[0].attn1
    for leaf in (attention.to_q, attention.to_k):
        store['undo'].append((leaf, leaf.forward))
        leaf.forward = shifted(leaf.forward)
print(len(store['undo']))
"""
)
FORWARDS_OUT = """
for module, forward in store.pop('undo'):
    del module.forward
"""
# Some extensions leave the bound method of the class on the instance when they go.
FORWARDS_BACK = """
for module, forward in store.pop('undo'):
    module.forward = forward
store['left'] = True
"""
HOOK_IN = (
    UNET
    + """
def double(module, args, output):
    return output * 6
store['hook'] = unet.middle_block[0].in_layers[2].register_forward_hook(double)
"""
)
HOOK_OUT = "store.pop('hook').remove()"

# What the webui says of itself when it samples with a UNet in half precision and --upcast-sampling.
UPCAST = "from modules import devices; devices.unet_needs_upcast = {}"

VAE = """
from modules import sd_models
vae = sd_models.model_data.sd_model.first_stage_model
"""
# As extensions that decode in tiles do: the decoder gets another forward on the instance.
VAE_DECODER_IN = (
    VAE
    + """
decoder, inner = vae.decoder, vae.decoder.forward
def mirrored(z):
    return inner(z.flip(-1)).flip(-1)
decoder.forward = mirrored
store['undo'] = [(decoder, mirrored)]
"""
)
VAE_ATTENTION_IN = (
    VAE
    + """
store['undo'] = []
def doubled(inner):
    def forward(x):
        return x + 2 * (inner(x) - x)
    return forward
for part in (vae.decoder, vae.encoder):
    attention = part.mid.attn_1
    attention.forward = doubled(attention.forward)
    store['undo'].append((attention, attention.forward))
"""
)
VAE_HOOK_IN = (
    VAE
    + """
def double(module, args, output):
    return output * 2
store['hook'] = vae.decoder.up[0].block[0].conv2.register_forward_hook(double)
"""
)
VAE_CLASS_IN = (
    VAE
    + """
attention = type(vae.decoder.mid.attn_1)
store['class'] = attention, attention.forward
def doubled(self, x, inner=attention.forward):
    return x + 2 * (inner(self, x) - x)
attention.forward = doubled
"""
)
VAE_CLASS_OUT = "attention, forward = store.pop('class'); attention.forward = forward"
VAE_TILES_OUT = (
    VAE
    + """
del vae.decoder.mid.attn_1.forward, vae.__webui_hypertile_layers
"""
)
VAE_DTYPE = VAE + "from modules import devices; print(devices.dtype_vae, vae.decoder.conv_in.weight.dtype)"
VAE_TO = VAE + "import torch; from modules import devices; devices.dtype_vae = torch.{0}; vae.to(torch.{0})"

TEXT_LAYER = """
from modules import sd_models
encoder = sd_models.model_data.sd_model.cond_stage_model.wrapped.transformer.text_model.encoder
layer = encoder.layers[1]
"""
TEXT_ATTENTION_IN = (
    TEXT_LAYER
    + """
attention, inner = layer.self_attn, layer.self_attn.forward
def turned(*args, **kwargs):
    found, *rest = inner(*args, **kwargs)
    return found + 0.5 * found.flip(-1), *rest
attention.forward = turned
store['undo'] = [(attention, turned)]
"""
)
TEXT_LAYER_IN = (
    TEXT_LAYER
    + """
inner = layer.forward
def turned(*args, **kwargs):
    found, *rest = inner(*args, **kwargs)
    return found + 0.5 * found.flip(-1), *rest
layer.forward = turned
store['undo'] = [(layer, turned)]
"""
)
TEXT_HOOK_IN = (
    TEXT_LAYER
    + """
def double(module, args, output):
    return output * 2
store['hook'] = layer.mlp.fc1.register_forward_hook(double)
"""
)

# Another's failure in the middle of sampling, after the UNet has run: once, at the second step.
THEIR_FAILURE_CODE = """
from modules import sd_samplers_cfg_denoiser as module
cls, combine, calls = module.CFGDenoiser, module.CFGDenoiser.combine_denoised, []
def failing(self, *args, **kwargs):
    calls.append(1)
    if len(calls) < 2:
        return combine(self, *args, **kwargs)
    cls.combine_denoised = combine
    raise RuntimeError("a failure made by a test")
cls.combine_denoised = failing
"""
# Another's failure inside the UNet, from the second step until it is taken out.
THEIR_UNET_FAILURE_CODE = (
    UNET
    + """
leaf, calls = unet.output_blocks[4][0].out_layers[3], []
def failing(x):
    calls.append(1)
    if len(calls) < 2:
        return type(leaf).forward(leaf, x)
    raise RuntimeError("a failure made by a test")
leaf.forward = failing
store['undo'] = [(leaf, failing)]
"""
)
# Ours: a block function raises from a call on, until a block is known to have failed. What was recorded is
# given up first: a replay calls none of our functions, and a call that cannot be recorded is made once more.
OUR_FAILURE = """
from lib_accel import extension
from lib_accel.blocks import {0} as module
extension._engine.release_memory()
broken, calls, original = extension._engine._bindings.broken, [], module.{1}
known = len(broken)
def failing(*args, **options):
    calls.append(1)
    if len(broken) > known:
        module.{1} = original
    if len(calls) < {2} or len(broken) > known:
        return original(*args, **options)
    raise RuntimeError("a failure made by a test")
module.{1} = failing
store["mend"] = lambda: setattr(module, "{1}", original)
"""
OUR_FAILURE_CODE = OUR_FAILURE.format("transformer", "feed_forward", 20)  # in the second call of the UNet
OUR_VAE_FAILURE = OUR_FAILURE.format("image", "group_norm", 1)
OUR_TEXT_FAILURE = OUR_FAILURE.format("encoder", "layer_norm", 1)
FORGET_FAILURES = """
from lib_accel import extension
store.pop("mend")()
extension._engine.attach()
"""

WATCH = (
    UNET
    + """
import weakref
parts = unet, unet.middle_block[0].in_layers[2], model.first_stage_model.decoder, model.cond_stage_model
store['watch'] = [weakref.ref(part) for part in parts]
del unet, model, parts
"""
)
CONTROLNETS_ALIVE = """
import gc
gc.collect()
print(sum(type(found).__name__ == "ControlNet" for found in gc.get_objects()))
"""
IS_FREED = """
import gc
gc.collect()
print(all(part() is None for part in store['watch']))
"""

# As after an update of the extension: the files are not those that this process was loaded from.
OTHER_FILES = "from lib_accel import extension; extension._LOADED = 'of other files'"
SAME_FILES = """
from lib_accel import extension
extension._LOADED, extension._host.hold_back = extension.digest_of_sources(), None
"""
