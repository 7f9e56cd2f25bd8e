"""How a model is sampled, as the scheduler of a diffusers pipeline says it, in both directions."""

from collections.abc import Mapping
from typing import Any

from lineardit.diffusion.times import TRAINING_STEPS
from lineardit.errors import CheckpointError

DPM, EULER, CONSISTENCY = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "SCMScheduler"

PUBLISHED_SHIFT = 3.0
"""The flow shift of every published SANA that is no Sprint."""

_SPRINT_SIGMA = 0.5
# Options that change the pictures, with the only value that is drawn with here, which is also diffusers' own.
_PLAIN_DPM: Mapping[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "num_train_timesteps": TRAINING_STEPS,
    "thresholding": False,
    "euler_at_final": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
}
_PLAIN_EULER: Mapping[str, Any] = {
    "num_train_timesteps": TRAINING_STEPS,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


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
        _check_plain(options, _PLAIN_DPM, source)
        return {"shift": _shift(options, "flow_shift", source), "sampler": "dpm++", "whole_times": True}
    if name == EULER:
        _check_plain(options, _PLAIN_EULER, source)
        return {
            "shift": _shift(options, "shift", source),
            "sampler": "euler",
            "whole_times": False,
            "published_euler": True,
        }
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


def _check_plain(options: Mapping[str, Any], plain: Mapping[str, Any], source: object) -> None:
    for key, value in plain.items():
        # An option that is unset is switched off.
        if (options.get(key, value) or None) != (value or None):
            raise CheckpointError(
                f"{source} has {key}={options[key]!r}, which is not drawn with here: only {value!r} is."
            )


def _shift(options: Mapping[str, Any], key: str, source: object) -> float:
    shift = options.get(key, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not shift > 0:
        raise CheckpointError(f"{source} has {key}={shift!r}: it must be a positive number.")
    return float(shift)
