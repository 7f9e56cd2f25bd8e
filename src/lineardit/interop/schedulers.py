"""How a model is sampled, as the scheduler of a diffusers pipeline says it, in both directions."""

from collections.abc import Mapping
from typing import Any

from lineardit.diffusion.times import TRAINING_STEPS
from lineardit.errors import CheckpointError

DPM, EULER, CONSISTENCY = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "SCMScheduler"

_SPRINT_SIGMA = 0.5


def sampling_from_scheduler(options: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Fields of the pipeline's `Sampling` that a scheduler_config.json decides.

    Raises:
        CheckpointError: it is another scheduler, or one for a model that does not predict velocities.
    """
    name = options.get("_class_name")
    if name == DPM:
        kind = (options.get("use_flow_sigmas"), options.get("prediction_type"))
        if kind != (True, "flow_prediction"):
            raise CheckpointError(
                f"{source} is a {DPM} with use_flow_sigmas={kind[0]} and prediction_type={kind[1]}. "
                "SANA has use_flow_sigmas=True and prediction_type='flow_prediction'."
            )
        # It hands the network whole times only, whatever the grid.
        return {"shift": _shift(options, "flow_shift", source), "sampler": "dpm++", "whole_times": True}
    if name == EULER:
        return {"shift": _shift(options, "shift", source), "sampler": "euler", "whole_times": False}
    if name == CONSISTENCY:
        found = options.get("prediction_type", "trigflow"), options.get("sigma_data", _SPRINT_SIGMA)
        if found != ("trigflow", _SPRINT_SIGMA):
            raise CheckpointError(
                f"{source} is a {CONSISTENCY} with prediction_type={found[0]} and sigma_data={found[1]}. "
                f"SANA-Sprint has trigflow and {_SPRINT_SIGMA}."
            )
        return {"shift": 1.0, "sampler": "scm", "num_inference_steps": 2, "whole_times": False}
    raise CheckpointError(f"{source} is a {name}. Read are {DPM}, {EULER} and {CONSISTENCY}.")


def sampling_to_scheduler(sampler: str, shift: float) -> dict[str, Any]:
    """The scheduler_config.json for a model that is sampled so."""
    if sampler == "scm":
        return {"_class_name": CONSISTENCY, "prediction_type": "trigflow", "sigma_data": _SPRINT_SIGMA}
    if sampler == "euler":
        return {"_class_name": EULER, "num_train_timesteps": TRAINING_STEPS, "shift": shift}
    return {
        "_class_name": DPM,
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "flow_shift": shift,
        "lower_order_final": True,
        "num_train_timesteps": TRAINING_STEPS,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "linspace",
        "use_flow_sigmas": True,
    }


def _shift(options: Mapping[str, Any], key: str, source: object) -> float:
    shift = options.get(key, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not shift > 0:
        raise CheckpointError(f"{source} has {key}={shift!r}: it must be a positive number.")
    return float(shift)
