"""Reading ahead: `python -m tests.host.bench_prefetch --webui DIR --venv DIR --json FILE`.

Two requests: one that is being drawn, and one behind it that names a LoRA whose file is not in memory. Read
ahead, the file comes in while the first is drawn; otherwise the second pays for it. In one server, in order
A B B A; all times are from the arrival of the second request.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from .bench import environment
from .kit.start import StartFailed, start
from .kit.stop import stop
from .pair import Place, end_servers_when_terminated
from .picture import loras, picture
from .row import Group
from .session import Session

NAME = "bench_prefetch_rank"
RANK = 128
AWAY = 1.5  # seconds after the first request in which the second arrives

# A LoRA as large as people use them, of one that the kit makes: its ranks repeated.
MAKE = f"""
import json, os, sys
from safetensors.torch import load_file, save_file
networks = sys.modules['networks']
networks.list_available_networks()
source = networks.available_networks['full_lora_a'].filename
target = os.path.join(os.path.dirname(source), '{NAME}.safetensors')
tensors = load_file(source)
for key, tensor in tensors.items():
    times = {RANK} // 16
    if 'lora_down' in key:
        tensors[key] = tensor.repeat(times, *[1] * (tensor.ndim - 1)) / times
    elif 'lora_up' in key:
        tensors[key] = tensor.repeat(1, times, *[1] * (tensor.ndim - 2))
    elif key.endswith('alpha'):
        tensors[key] = tensor * times
save_file({{key: tensor.contiguous() for key, tensor in tensors.items()}}, target)
os.sync()
networks.list_available_networks()
store['file'] = target
print(os.path.getsize(target))
"""
# Notes when things happen, with the clock that time.time() is on both sides of the wire.
WATCH = """
import functools, sys, time
from lib_accel import extension
networks = sys.modules['networks']
store['notes'] = notes = []
def noted(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        began = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            notes.append((name, began, time.time()))
    return call
ahead = extension._read_ahead
store['prompt'] = ahead.prompt
ahead._read = noted('read ahead', ahead._read)
networks.load_network = noted('load', networks.load_network)
networks.load_networks = noted('load all', networks.load_networks)
extension._host._merger.merge = noted('merge', extension._host._merger.merge)
print('ok')
"""
COLD = """
import os, sys
from lib_accel import extension
extension._kept.clear()
sys.modules['networks'].loaded_networks.clear()
handle = os.open(store['file'], os.O_RDONLY)
os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
os.close(handle)
store['notes'].clear()
extension._read_ahead._asked.clear()
extension._read_ahead.prompt = store['prompt'] if AHEAD else (lambda text: None)
print('ok')
"""
NOTES = "import json; print(json.dumps(store['notes']))"
REMOVE = "import os; os.unlink(store['file']); print('ok')"


def one(session: Session, *, ahead: bool) -> dict[str, Any]:
    """Two requests, the second a little after the first, and what happened when."""
    session.client.run_code(COLD.replace("AHEAD", str(ahead)))
    first = session.request(picture("first", steps=6, accel=True))
    second = session.request(picture("second", steps=1, prompt=loras(NAME), accel=True))
    drawing = threading.Thread(target=session.client.generate, args=(first,))
    drawing.start()
    time.sleep(AWAY)
    arrived = time.time()
    session.client.generate(second)
    done = time.time()
    drawing.join()
    notes = json.loads(session.client.run_code(NOTES))
    events = [(name, begin - arrived, end - arrived) for name, begin, end in notes if end > arrived]
    begin, end = next((begin, end) for name, begin, end in events if name == "load")
    merges = [(start, stop) for name, start, stop in events if name == "merge" and start > begin]
    return {
        "load_ms": 1000 * (end - begin),
        "turn_s": next(start for name, start, _ in reversed(events) if name == "load all"),
        "read_ahead_s": [(start, stop) for name, start, stop in events if name == "read ahead"],
        "load_s": (begin, end),
        "merge_ms": 1000 * sum(stop - start for start, stop in merges),
        "done_s": done - arrived,
    }


def measure(place: Place, pairs: int) -> dict[str, Any]:
    """All runs of both ways, and their medians."""
    launch = place.launch(Group("bench", (), checkpoint="full"), ours=True)
    start(launch)
    runs: dict[str, list[dict[str, Any]]] = {"ahead": [], "not ahead": []}
    try:
        session = Session(launch, ours=True)
        size = int(session.client.run_code(MAKE))
        session.client.run_code(WATCH)
        one(session, ahead=True)  # to warm up
        for number in range(pairs):
            for side in ("ahead", "not ahead") if number % 2 == 0 else ("not ahead", "ahead"):
                runs[side].append(one(session, ahead=side == "ahead"))
                print(f"{side:9} load {runs[side][-1]['load_ms']:7.1f} ms", flush=True)
        session.client.run_code(REMOVE)
    finally:
        stop(launch.webui, launch.port)
    medians = {side: median(run["load_ms"] for run in some) for side, some in runs.items()}
    print(f"{size / 2**20:.0f} MiB: {medians['not ahead']:.0f} ms cold, {medians['ahead']:.0f} ms read ahead")
    return {"file_bytes": size, "load_ms": medians, "runs": runs}


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.host.bench_prefetch")
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout")
    parser.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--port", type=int, default=7871, help="the server uses the port after this one")
    arguments = parser.parse_args()
    end_servers_when_terminated()
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=True)
    place.make_models({"full"})
    try:
        figures = measure(place, arguments.pairs)
    except StartFailed as failure:
        sys.exit(str(failure))
    if arguments.json:
        report = {"environment": environment(place)} | figures
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
