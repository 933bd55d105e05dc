"""How time and memory grow: with thoughts K, steps T, points, slots and parameters; and throughput
over simulated devices and two processes.

The program is the refiner in a scan, with random weights; one size is varied at a time.  An
exponent is the slope of log time (or memory) against log size over the upper half of the sizes,
with an interval from resampled timings.  Simulated devices share the cores of this machine, so they
show that the program divides, not that it gets faster.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import harness
from refinemath.fitting import Points, no_candidate
from refinemath.model import ModelConfig
from refinemath.training import TrainConfig, make_trainer

BASE = {"thoughts": 8, "steps": 8, "points": 64, "slots": 16, "width": 64}
SIZES: dict[str, tuple[int, ...]] = {
    "thoughts": (2, 4, 8, 16, 32, 64),
    "steps": (4, 8, 16, 32, 64, 128),
    "points": (32, 128, 512, 1024, 2048, 4096),
    "slots": (8, 16, 24, 32, 48, 64),
    "width": (32, 64, 96, 128, 192, 256),
}


def measure(size: dict[str, int], repeats: int) -> dict[str, Any]:
    """Seconds and bytes of one program."""
    config = ModelConfig(latent_dim=256, width=size["width"], slots=size["slots"])
    params, graph = harness.parts_of(config)
    x = jnp.broadcast_to(jnp.linspace(-2, 2, size["points"]), (size["thoughts"], 1, size["points"]))
    points = Points(x, jnp.sin(3 * x[:, 0]), jnp.ones((size["thoughts"], size["points"]), bool))

    def run(params: Any, noise: Array, points: Points) -> Array:
        model = nnx.merge(graph, params)
        encoded, candidate = model.encoder(points), no_candidate(points, config.slots)
        z = model.refiner.start(noise)
        return jax.lax.scan(
            lambda z, _: (model.refiner(z, encoded, candidate), None), z, None, length=size["steps"]
        )[0]

    noise = 0.3 * jax.random.normal(
        jax.random.key(0), (size["thoughts"], config.slots, config.latent_dim)
    )
    program = jax.jit(run).lower(params, noise, points).compile()
    memory = program.memory_analysis()
    assert memory is not None, "this backend does not report memory"
    jax.block_until_ready(program(params, noise, points))
    seconds = harness.times(lambda: program(params, noise, points), repeats=repeats)
    return {
        **size,
        "parameters": harness.parameter_count(params),
        "seconds": seconds,
        "bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
    }


def exponent(
    size: np.ndarray, values: list[np.ndarray], *, seed: int = 0, count: int = 1000
) -> dict[str, float]:
    """Slope of log value against log size over the upper half of the sizes; the values of each size
    are its repeated timings.
    """
    upper = list(range(len(size) // 2, len(size))) if len(size) > 3 else list(range(len(size)))
    x = np.log(size[upper].astype(float))

    def slope(rows: list[np.ndarray]) -> float:
        y = np.log([np.median(r) for r in rows])
        return float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2))

    rng = np.random.default_rng(seed)
    drawn = [slope([rng.choice(values[i], len(values[i])) for i in upper]) for _ in range(count)]
    return {
        "value": slope([values[i] for i in upper]),
        "low": float(np.quantile(drawn, 0.025)),
        "high": float(np.quantile(drawn, 0.975)),
    }


# ---------------------------------------------------------------- devices and processes


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Examples a second of the training step on all devices this process sees, and its loss."""
    recipe = TrainConfig(batch=options.batch)
    config = ModelConfig(latent_dim=options.latent_dim, width=options.width)
    trainer = make_trainer(
        config, recipe, harness.training_bank(options.work, options.bank), harness.exclusions()[1]
    )
    state, metrics = trainer.step(trainer.init())
    first = float(metrics["loss"])
    seconds = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        state, metrics = trainer.step(state)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "first_loss": first,
        "last_loss": float(metrics["loss"]),
        "examples_per_second": options.batch / float(np.median(seconds)),
        "step_seconds": harness.interval(seconds, np.median),
    }


def child(options: argparse.Namespace) -> None:
    """`devices:4`, or `process:0:12345` (number, port) of two; prints its record as the last
    line.
    """
    kind, number, *port = options.only.split(":")
    if kind == "process":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port[0]}", 2, int(number))
    print(json.dumps(harness.rounded(throughput(options))), flush=True)


def start_child(options: argparse.Namespace, only: str, devices: int) -> subprocess.Popen[str]:
    """A process of its own with so many simulated devices."""
    command = [
        sys.executable,
        "-m",
        "experiments.growth",
        "--only",
        only,
        "--work",
        str(options.work),
    ]
    for name in ("width", "latent_dim", "batch", "bank", "repeats"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        command, cwd=harness.ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The record that a child printed."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a child ended with status {process.returncode}")
    return json.loads(out.strip().splitlines()[-1])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Growth, then devices, then processes."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--width", type=int, default=64, help="of the model whose training is divided"
    )
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bank", type=int, default=2000)
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--no-processes", action="store_true")
    options = parser.parse_args(arguments)
    if options.only:
        child(options)
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "growth")
    base, sizes = dict(BASE), SIZES
    if options.quick:
        options.repeats, options.devices, options.no_processes = 3, [], True
        base, sizes = (
            {**BASE, "width": 32, "points": 16, "steps": 2, "thoughts": 2},
            {"thoughts": (2, 8), "steps": (2, 8)},
        )
    rows = {
        name: [measure({**base, name: n}, options.repeats) for n in numbers]
        for name, numbers in sizes.items()
    }
    exponents: dict[str, dict[str, Any]] = {}
    for name, measured in rows.items():
        of = np.array([m["parameters" if name == "width" else name] for m in measured])
        label = "parameters" if name == "width" else name
        memory = [np.array([m["bytes"]]) for m in measured]
        exponents[label] = {
            "seconds": exponent(of, [np.array(m["seconds"]) for m in measured]),
            "bytes": exponent(of, memory, count=1)["value"],
        }
        e = exponents[label]["seconds"]
        print(
            f"time grows as {label}^{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}], memory as "
            f"{label}^{exponents[label]['bytes']:.2f}",
            flush=True,
        )
    if options.devices:
        harness.training_bank(options.work, options.bank)
    devices = [finish(start_child(options, f"devices:{n}", n)) for n in options.devices]
    for d in devices:
        print(
            f"{d['devices']} device(s): {d['examples_per_second']:.0f} examples/s, loss "
            f"{d['last_loss']:.5f}",
            flush=True,
        )
    processes: list[dict[str, Any]] = []
    if not options.no_processes:
        port = free_port()
        both = [start_child(options, f"process:{i}:{port}", 1) for i in range(2)]
        processes = [finish(p) for p in both]
        print(
            f"two processes: {processes[0]['examples_per_second']:.0f} examples/s, loss "
            f"{processes[0]['last_loss']:.5f}"
        )
    report = {
        "base": base,
        "exponents": exponents,
        "rows": rows,
        "devices": devices,
        "processes": processes,
    }
    return harness.write("growth", options, report, began)


if __name__ == "__main__":
    main()
