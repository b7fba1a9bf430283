"""Switching LoRAs in a real webui: `python -m tests.host.bench_loras --webui DIR --venv DIR --json FILE`.

In one server, with the webui's own network objects and layers: all layers are made to carry 1, 4 or 16
networks, again and again with other strengths, by the webui's function for one layer and by ours, in order
A B B A. What the webui needs to read a network is timed apart, and so is to get one that was read before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from .bench import ENVIRONMENT_CODE, environment
from .kit.start import StartFailed, start
from .kit.stop import stop
from .pair import Place, end_servers_when_terminated
from .row import Group
from .session import Session

COUNTS = (1, 4, 16)
SIZES = ("full", "tiny")
HEADING = (
    f"{'size':5} {'LoRAs':>5} {'stock ms':>9} {'ours ms':>9} {'ratio':>6} {'unchanged':>9} {'stock off':>9} "
    f"{'ours off':>9} {'difference':>10}"
)
LETTERS = "abcd"  # of the LoRAs that the kit makes for each size

PREPARE = """
import sys, time, torch
from modules import devices, sd_models
from lib_accel.hosts.webui_lora import Merger
networks = sys.modules['networks']
networks.list_available_networks()
model = sd_models.model_data.sd_model
kinds = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm
layers = [layer for layer in model.network_layer_mapping.values() if isinstance(layer, kinds)]
original = networks.load_network.__closure__[0].cell_contents
disk = [networks.available_networks[f'SIZE_lora_{letter}'] for letter in LETTERS]
pool, load = [], []
for number in range(16):
    began = time.perf_counter()
    pool.append(original(f'n{number}', disk[number % len(disk)]))
    load.append(time.perf_counter() - began)
kept = []
networks.load_network('again', disk[0])
for _ in range(5):
    began = time.perf_counter()
    networks.load_network('again', disk[0])
    kept.append(time.perf_counter() - began)
merger = Merger()
def stock():
    for layer in layers:
        networks.network_apply_weights(layer)
def ours():
    merger.merge(layers, networks, exact=False)
sides = {'stock': stock, 'ours': ours}
def wear(count, strength):
    networks.loaded_networks[:] = pool[:count]
    for number, each in enumerate(networks.loaded_networks):
        each.te_multiplier = each.unet_multiplier = strength + 0.01 * number
def timed(side):
    with torch.no_grad(), devices.autocast():
        began = time.perf_counter()
        sides[side]()
        return time.perf_counter() - began
def weights():
    return [layer.weight.detach().clone() for layer in layers[::7]]
store.update(wear=wear, timed=timed, weights=weights, load=load, kept=kept, pool=pool, networks=networks)
touched = sum(layer.network_layer_name in pool[0].modules for layer in layers)
elements = sum(layer.weight.numel() for layer in layers if layer.network_layer_name in pool[0].modules)
import json, statistics
print(json.dumps({'layers': len(layers), 'touched': touched, 'elements': elements,
    'file_bytes': __import__('os').path.getsize(disk[0].filename),
    'load_ms': 1000 * statistics.median(load), 'load_kept_ms': 1000 * statistics.median(kept)}))
"""
SWITCH = """
wear, timed, weights, pool = store['wear'], store['timed'], store['weights'], store['pool']
import json
seconds = {'stock': [], 'ours': []}
first, far = {}, 0.0
for number in range(PAIRS + 1):
    merged = {}
    for turn, side in enumerate(('stock', 'ours') if number % 2 == 0 else ('ours', 'stock')):
        wear(COUNT, 0.2 + 0.05 * number + 0.001 * turn)
        took = timed(side)
        (seconds[side].append(took) if number else first.update({side: took}))
    wear(COUNT, 0.3)
    if number == 0:
        for side in ('stock', 'ours'):
            wear(COUNT, 0.9 if side == 'stock' else 0.9 + 1e-9)
            timed(side)
            merged[side] = weights()
        pairs = zip(merged['stock'], merged['ours'])
        far = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
unchanged = []
for _ in range(5):
    unchanged.append(timed('ours'))
off = {}
for side in ('stock', 'ours'):
    wear(COUNT, 0.5)
    timed(side)
    store['networks'].loaded_networks[:] = []
    off[side] = timed(side)
print(json.dumps({'seconds': seconds, 'unchanged': unchanged, 'off': off, 'difference': far}))
"""


def measure(size: str, place: Place, pairs: int) -> dict[str, Any]:
    """All figures of one size."""
    launch = place.launch(Group("bench", (), checkpoint=size), ours=True)
    start(launch)
    try:
        client = Session(launch, ours=True).client
        prepare = PREPARE.replace("SIZE", size).replace("LETTERS", repr(LETTERS))
        figures: dict[str, Any] = json.loads(client.run_code(prepare))
        figures["server"] = json.loads(client.run_code(ENVIRONMENT_CODE))
        figures["switch"] = {}
        for count in COUNTS:
            code = SWITCH.replace("PAIRS", str(pairs)).replace("COUNT", str(count))
            figures["switch"][str(count)] = summary(json.loads(client.run_code(code)))
            print(line(size, count, figures["switch"][str(count)]), flush=True)
    finally:
        stop(launch.webui, launch.port)
    load, kept = figures["load_ms"], figures["load_kept_ms"]
    print(f"{size}: a network is read in {load:.0f} ms, got again in {kept:.2f} ms", flush=True)
    return figures


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Medians in milliseconds, and the ratio of pairs."""
    from statistics import median

    stock, ours = run["seconds"]["stock"], run["seconds"]["ours"]
    ratios = [before / after for before, after in zip(stock, ours, strict=True)]
    return {
        "stock_ms": 1000 * median(stock),
        "ours_ms": 1000 * median(ours),
        "ratio": median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "unchanged_ms": 1000 * median(run["unchanged"]),
        "off_stock_ms": 1000 * run["off"]["stock"],
        "off_ours_ms": 1000 * run["off"]["ours"],
        "difference": run["difference"],
    }


def line(size: str, count: int, figures: dict[str, Any]) -> str:
    """One line of the table."""
    times = f"{figures['stock_ms']:9.1f} {figures['ours_ms']:9.1f} {figures['ratio']:6.2f}"
    others = f"{figures['unchanged_ms']:9.2f} {figures['off_stock_ms']:9.1f} {figures['off_ours_ms']:9.1f}"
    return f"{size:5} {count:5} {times} {others} {figures['difference']:10.1e}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.host.bench_loras", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout")
    parser.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="checkpoints of the kit")
    parser.add_argument("--pairs", type=int, default=5, help="switches by each side (default 5)")
    parser.add_argument("--port", type=int, default=7871, help="the server uses the port after this one")
    return parser.parse_args()


def main() -> int:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    end_servers_when_terminated()
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=True)
    place.make_models(set(arguments.sizes))
    print(HEADING, flush=True)
    began = time.monotonic()
    try:
        sizes = {size: measure(size, place, arguments.pairs) for size in arguments.sizes}
    except StartFailed as failure:
        sys.exit(str(failure))
    print(f"{time.monotonic() - began:.0f} s")
    if arguments.json:
        report = {"environment": environment(place), "sizes": sizes}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
