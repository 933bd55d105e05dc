"""Where does the time of training go, and how far does a GPU go?  Operations of a training example,
the share of the matrix-product peak reached here, of drawing the data and of the optimizer, and a
projection for one L40S.

Operations are counted from the traced training step with every scan multiplied out (matrix products
alone, exact), and by the compiler's own analysis, which counts the body of a loop once.  The
projection is a projection: nothing was run on an L40S.
"""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

import jax
import numpy as np

from experiments import measure, networks
from experiments.runner import Experiment
from refinemath.corpus.exclusions import excludes
from refinemath.examples import draw_examples, length_weights
from refinemath.training import TrainConfig, make_optimizer, make_trainer

# NVIDIA L40S data sheet, dense: float32 without tensor cores, TF32 and bfloat16 with them.
L40S = {"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12}


def traced_flops(jaxpr: Any) -> int:
    """Operations of the matrix products of a traced program, two for every multiplication; the body
    of a scan counts as often as it runs, that of a while loop once, of branches the largest.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            summed = math.prod(shape[i] for i in left)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
            continue
        leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        inner = [traced_flops(getattr(v, "jaxpr", v)) for v in leaves if is_program(v)]
        if inner and equation.primitive.name == "cond":
            total += max(inner)
        elif inner:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def is_program(value: Any) -> bool:
    """Whether a parameter of an equation is itself a traced program."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def task(options: Namespace, name: str) -> dict[str, Any]:
    """Count and time the training step of the shipped model."""
    config = networks.small_config(options) if options.quick else networks.shipped().config
    bank, probes = networks.material(options)
    recipe = TrainConfig(batch=options.batch)
    trainer = make_trainer(config, recipe, bank, probes)
    state = trainer.init()
    traced = traced_flops(jax.make_jaxpr(trainer.step)(state).jaxpr) / options.batch
    program = trainer.step.lower(state).compile()  # type: ignore[attr-defined]
    analysis = program.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    states, params = [program(state)[0]], networks.random_network(config).params
    optimizer, weights = make_optimizer(recipe, params), length_weights(bank)
    moments, update, key = optimizer.init(params), jax.jit(optimizer.update), jax.random.key(0)
    draw = jax.jit(
        lambda k: draw_examples(k, bank, recipe.batch, weights=weights, reject=excludes(probes))
    )

    def step() -> Any:
        states[0], metrics = program(states[0])
        return metrics

    parts = {
        "whole step": step,
        "draw examples": lambda: draw(key),
        "optimizer": lambda: update(params, moments, params),
    }
    seconds = measure.in_turns(parts, options.repeats)
    median = float(np.median(seconds["whole step"]))
    peak = measure.matmul_peak(256 if options.quick else 1024, repeats=options.repeats)
    share = traced * options.batch / median / peak
    return {
        "parameters": networks.size_of(config),
        "parts": measure.medians(seconds),
        "flops_per_example": {
            "traced step": traced,
            "compiler": float(analysis["flops"]) / options.batch,
        },
        "examples_per_second": options.batch / median,
        "matmul_peak_here": peak,
        "share_of_peak_here": share,
        "projection": {
            "label": "a projection, not a measurement: seconds * share of peak * peak / FLOPs",
            "peak": L40S,
            "examples an hour": {k: 3600 * share * top / traced for k, top in L40S.items()},
        },
    }


EXPERIMENT = Experiment(
    "flops",
    __doc__,
    lambda options: ["step"],
    task,
    lambda options, records: records["step"],
    shared=("bank", "repeats"),
    options={"batch": 256, "width": 128, "latent_dim": 512},
)
