"""How the network for tables, `refinemath.network`, is trained and measured.

It is asked three things: the whole formula, the next operation (one operator and its short
operand), or a repair, with a wrong candidate and its residual among what the latents read
(`candidates`).

    python -m experiments.network.training run FOLDER [--minutes M]
    python -m experiments.network.training release FOLDER --steps 1000
    python -m experiments.network.evaluate FOLDER nats|operations|chain|loop

The run stands in experiments/network/run, its last checkpoint in the repository.

`run` makes its table of skeletons in FOLDER, trains at a constant rate, logs, and goes on bit for
bit from its checkpoint (at most 16 MiB); `release` writes weights after a falling rate.  Sizes are
the fields of `refinemath.network.config.Config` and `training.Recipe`, given as JSON: `--config
'{"width": 64}'`.

What the lab measured, one variable, nats for the whole formula (less is better), 1,536 problems:

    network                                     examples   nats   up to 16 tokens
    encoder read by the decoder (`direct`)         84k     18.12       14.76
    the same with fits of pairs of functions       72k     18.13       14.76
    the same without seeing the points             80k     19.50       16.28
    this form (`lat1`)                             84k     18.41       15.07
    this form, another problem's points            84k     20.98       17.80
    this form, by chain of next operations         84k     15.45 +- 0.43

Against the blind one, the points were worth 1.4 nats to `direct` and 1.1 to this form.  In the
closed loop another checkpoint (139k examples, one and three columns, half with candidates)
recovered 25 of 64 problems when shown its best candidate, 21 without, 18 in one shot, and blind
draws 17.

How far this goes: one seed, one small training on a fraction of a core, no second run.  The
problems of a table share a standard error of 0.25 nats (0.1 for differences).  The chain is an
upper view: every operation is asked from the true points of its own state, which a search does not
have, and numbers and offsets are free.  The loop's differences, of 64 problems, are hints.  Four
refiner steps were no better than one (19.52 and 19.40 nats, of a checkpoint after 76k examples).
The lab's tables lacked today's exclusions, so its weights are not released and its numbers are not
comparable with those of a new run.
Record: `results/network_trials.json`.
"""
