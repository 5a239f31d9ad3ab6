"""What is due at a step, in closed form: the learning rate, as a multiple of optimizer.lr, and evaluations."""

import math

from marble_sweep.groups import CosineConfig, LinearConfig, ScheduleConfig, WSDConfig

EVAL_RATIO = math.sqrt(2)  # between the steps of two evaluations with geometric spacing


def evaluation_steps(total_steps: int, num_evals: int, spacing: str) -> list[int]:
    """The steps after which a run is evaluated, in order, the last one at the end; at most `num_evals`.

    They are equally far apart (`linear`), or EVAL_RATIO times the one before (`geometric`).
    """
    if spacing == "geometric":
        powers = range(min(num_evals, 2 * total_steps.bit_length() + 1))  # beyond these all are step 1
        return sorted({max(1, round(total_steps / EVAL_RATIO**power)) for power in powers})
    num_evals = min(num_evals, total_steps)
    return [total_steps * number // num_evals for number in range(1, num_evals + 1)]


def lr_scale(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The multiple for `step` (1 to total_steps): linear warm-up, then constant, cosine, linear or wsd.

    The last step of a schedule that decays gets `final_fraction` exactly.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if isinstance(config, WSDConfig):
        decay_steps = max(1, round(total_steps * config.decay_fraction)) if config.decay_fraction > 0 else 0
        decay_start = max(config.warmup_steps, total_steps - decay_steps)
        if step <= decay_start:
            return 1.0
        progress = (step - decay_start) / (total_steps - decay_start)
        return config.final_fraction + (1.0 - config.final_fraction) * (1.0 - progress)
    if isinstance(config, CosineConfig):
        progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
        left = 1.0 - progress if isinstance(config, LinearConfig) else 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_fraction + (1.0 - config.final_fraction) * left
    return 1.0
