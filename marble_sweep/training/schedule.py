"""The learning rate as a multiple of optimizer.lr, in closed form."""

import math

from marble_sweep.groups import CosineConfig, ScheduleConfig, WSDConfig


def lr_scale(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The multiple for `step` (1 to total_steps): linear warm-up, then constant, cosine or wsd.

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
        return config.final_fraction + (1.0 - config.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
