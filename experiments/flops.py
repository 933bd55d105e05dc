"""Eight to ten hours on one L40S? Operations of an example, the share of the matrix-product peak
reached here, and a projection.

Operations are counted three ways: by a formula from the shapes (below), from the traced training
step with every scan multiplied out (matrix products alone, exact), and by the compiler's own
analysis, which counts the body of a loop once.  The projection is a projection: nothing was run on
an L40S.
"""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import harness
from refinemath.expression import VOCABULARY_SIZE
from refinemath.fitting import Points, no_candidate
from refinemath.loop import POINTS
from refinemath.model import FEEDBACK_FEATURES, GLANCE, POINT_FEATURES, ModelConfig
from refinemath.newton_schulz import MUON, POLAR
from refinemath.training import TrainConfig, make_trainer

# NVIDIA L40S data sheet, dense: float32 without tensor cores, TF32 and bfloat16 with them.
L40S = {"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12}


def encoder_flops(config: ModelConfig, points: int) -> int:
    """Matrix products of one pass of the encoder over one plot: two operations for every
    multiplication.
    """
    w, s, p = config.width, config.seeds, points
    each = p * (POINT_FEATURES[config.variables] * 2 * w + 2 * w * w)  # perceptron on every point
    gather = (
        p * 2 * w * w + s * 2 * w * w + 2 * s * p * w
    )  # keys and values, query and output, scores and mixture
    block = (
        s * (2 + 2 + 8) * w * w + 2 * s * s * w
    )  # keys and values, query and output, feedforward; scores and mixture
    return 2 * (each + gather + config.encoder_blocks * block)


def refiner_flops(config: ModelConfig, points: int) -> int:
    """Matrix products of one refiner step with its logits."""
    w, d, length, s, p = config.width, config.latent_dim, config.slots, config.seeds, points
    read = (
        p * (FEEDBACK_FEATURES * w + w * w + 2 * w * w) + s * 2 * w * w
    )  # feedback, keys and values
    slots = length * (4 * w + d * w + w * d + d * VOCABULARY_SIZE)  # numbers, read, write, head
    block = length * (4 + 2 + 8) * w * w + 2 * length * length * w + 2 * length * (p + s) * w
    return 2 * (read + slots + config.refiner_blocks * block) + stabiliser_flops(config)


def stabiliser_flops(config: ModelConfig) -> int:
    """Newton-Schulz on one thought: the Gram matrix, four small products a step, and the wide
    product at the end.
    """
    length, schedule = (
        config.slots,
        {"rms": 0, "muon": len(MUON)}.get(config.stabiliser, len(POLAR)),
    )
    return (
        2 * (2 * length * length * config.latent_dim + 4 * schedule * length**3) if schedule else 0
    )


def opening_flops(config: ModelConfig) -> int:
    """What a reader works out of a thought once, for all its readings: its look at every slot, the
    overview, and keys and finds where it looks back.
    """
    w, d, length = config.reader, config.latent_dim, config.slots
    plain = length * (d * w + d * GLANCE + GLANCE * w)
    return 2 * (plain + (length * (2 * d * w + w * w) if config.reader_heads else 0)) if w else 0


def reading_flops(config: ModelConfig) -> int:
    """And for every reading: the head at every slot, and scores and finds where it looks back.
    Nothing without a reader.
    """
    w, length, heads = config.reader, config.slots, config.reader_heads
    return 2 * length * (w * VOCABULARY_SIZE + (length * w + heads * length * w if heads else 0))


def step_flops(config: ModelConfig, points: int) -> int:
    """One refiner step, and one formula read off its thought."""
    return refiner_flops(config, points) + opening_flops(config) + reading_flops(config)


def training_flops(config: ModelConfig, recipe: TrainConfig, points: int = POINTS) -> int:
    """Matrix products of one example of one training step: forward once, backward twice, the seed
    thought's projection, and the own samples' reading.

    The samples are drawn from logits and an opened thought that the loss has worked out already.
    """
    supervised = encoder_flops(config, points) + recipe.unroll * step_flops(config, points)
    return (
        3 * supervised
        + stabiliser_flops(config)
        + recipe.unroll * recipe.own_samples * reading_flops(config)
    )


def traced_flops(jaxpr: Any) -> int:
    """Matrix products of a traced program; the body of a scan counts as often as it runs, that of a
    while loop once, of branches the largest.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(equation.invars[0].aval.shape[i] for i in left)
            )
            continue
        leaves = jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
        )
        inner = [
            traced_flops(getattr(v, "jaxpr", v))
            for v in leaves
            if hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ]
        if inner:
            total += (
                max(inner)
                if equation.primitive.name == "cond"
                else sum(inner) * equation.params.get("length", 1)
            )
    return total


def forward_agrees(config: ModelConfig, points: int = 24) -> tuple[int, int]:
    """The formula's forward pass (encoder, one refiner step, one formula read) beside what one more
    plot adds to the traced program.
    """
    params, graph = harness.parts_of(config)

    def forward(params: Any, z: jax.Array, plot: Points) -> jax.Array:
        model = nnx.merge(graph, params)
        z = model.refiner(z, model.encoder(plot), no_candidate(plot, config.slots))
        return (
            model.refiner.log_probability(z, jnp.ones(z.shape[:2], jnp.int32))
            if config.reader
            else model.refiner.logits(z)
        )

    def traced(batch: int) -> int:
        plot = Points(
            jnp.ones((batch, 1, points)), jnp.ones((batch, points)), jnp.ones((batch, points), bool)
        )
        return traced_flops(
            jax.make_jaxpr(forward)(
                params, jnp.ones((batch, config.slots, config.latent_dim)), plot
            ).jaxpr
        )

    return encoder_flops(config, points) + step_flops(config, points), traced(2) - traced(1)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Count, measure, project."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=TrainConfig().batch)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bank", type=int, default=2000)
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.repeats, options.bank = 8, 2, 40
    began = time.perf_counter()
    config = harness.TINY if options.quick else harness.shipped()[2]
    recipe = TrainConfig(batch=options.batch)
    bank = harness.training_bank(harness.folder(options, "flops"), options.bank)
    trainer = make_trainer(config, recipe, bank, harness.exclusions()[1])
    state = trainer.init()
    traced = traced_flops(jax.make_jaxpr(trainer.step)(state).jaxpr) / options.batch
    program = trainer.step.lower(state).compile()  # type: ignore[attr-defined]
    analysis = program.cost_analysis()
    by_compiler = (
        float((analysis[0] if isinstance(analysis, list) else analysis)["flops"]) / options.batch
    )
    formula = training_flops(config, recipe)
    seconds, peaks = [], []
    state, _ = program(state)
    for _ in range(options.repeats):
        peaks.append(harness.matmul_peak(256 if options.quick else 1024, repeats=2))
        start = time.perf_counter()
        state, metrics = program(state)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    step, peak = float(np.median(seconds)), float(np.max(peaks))
    share = formula * options.batch / step / peak
    examples = {
        h: {kind: h * 3600 * share * top / formula for kind, top in L40S.items()} for h in (8, 10)
    }
    by_formula, by_trace = forward_agrees(config)
    count = harness.parameter_count(state.params)
    report = {
        "parameters": count,
        "batch": options.batch,
        "unroll": recipe.unroll,
        "points": POINTS,
        "flops_per_example": {
            "formula": formula,
            "traced step": traced,
            "compiler": by_compiler,
            "six times parameters": 6 * count,
        },
        "forward": {"formula": by_formula, "traced": by_trace},
        "step_seconds": harness.interval(seconds, np.median),
        "examples_per_second": options.batch / step,
        "matmul_peak_here": peak,
        "share_of_peak_here": share,
        "projection": {
            "label": "a projection, not a measurement",
            "formula": "examples = hours * 3600 s * share_of_peak_here * peak of the L40S / FLOPs per example",
            "peak": L40S,
            "examples": examples,
            "hours_for_ten_million_examples": {
                kind: 1e7 * formula / (share * top) / 3600 for kind, top in L40S.items()
            },
        },
    }
    print(
        f"FLOPs per example: formula {formula:.4g}, traced {traced:.4g}, compiler {by_compiler:.4g}"
    )
    print(
        f"step {step:.3f} s, {options.batch / step:.0f} examples/s, {100 * share:.0f} % of the "
        f"{peak / 1e9:.0f} GFLOP/s of a matrix product here"
    )
    print(
        f"projection: 8 hours of an L40S in float32 at the same share are "
        f"{examples[8]['float32']:.3g} examples"
    )
    return harness.write("flops", options, report, began)


if __name__ == "__main__":
    main()
