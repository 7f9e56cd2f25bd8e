"""What a network may predict along a path: its target, and the way back to image and noise."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lineardit.config.article import ArticleConfig
from lineardit.diffusion.paths import DDPMPath, Path, PerSample, Samples, Times


@dataclass(frozen=True)
class Prediction(ABC):
    """One thing that a network may predict along `path`."""

    path: Path

    @abstractmethod
    def target(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """What the network should say."""

    @abstractmethod
    def x0(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """The image that a prediction at `x` implies."""

    @abstractmethod
    def noise(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """The noise that a prediction at `x` implies."""

    @abstractmethod
    def magnification(self, times: Times) -> PerSample:
        """Its squared error over that of the image it implies."""


class NoisePrediction(Prediction):
    """The network predicts the noise, also called epsilon."""

    def target(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """The noise."""
        return noise

    def x0(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """(x - sigma noise) / alpha."""
        return self.path.x0_from_noise(predicted, x, times)

    def noise(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """The prediction itself."""
        return predicted

    def magnification(self, times: Times) -> PerSample:
        """alpha^2 / sigma^2, the signal-to-noise ratio."""
        return self.path.snr(times)


class ImagePrediction(Prediction):
    """The network predicts the image, also called x0 or sample."""

    def target(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """The image."""
        return x0

    def x0(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """The prediction itself."""
        return predicted

    def noise(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """(x - alpha x0) / sigma."""
        return self.path.noise_from_x0(predicted, x, times)

    def magnification(self, times: Times) -> PerSample:
        """1."""
        return torch.ones_like(self.path.alpha(times))


class VelocityPrediction(Prediction):
    """The network predicts the velocity of the path, also called v."""

    def target(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """v = a x0 + b noise."""
        return self.path.velocity(x0, noise, times)

    def x0(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """b x - sigma v."""
        return self.path.x0_from_velocity(predicted, x, times)

    def noise(self, predicted: Samples, x: Samples, times: Times) -> Samples:
        """alpha v - a x."""
        return self.path.noise_from_velocity(predicted, x, times)

    def magnification(self, times: Times) -> PerSample:
        """1 / sigma^2."""
        return self.path.sigma(times).square().reciprocal()


PREDICTIONS: Mapping[str, type[Prediction]] = {
    "epsilon": NoisePrediction,
    "sample": ImagePrediction,
    "v_prediction": VelocityPrediction,
}
"""By the names that configurations have for them."""


def ddpm_prediction(config: ArticleConfig) -> Prediction:
    """What a network of this configuration predicts, along its path."""
    return PREDICTIONS[config.prediction_type](ddpm_path(config))


def ddpm_path(config: ArticleConfig) -> DDPMPath:
    """The path that a network of this configuration was trained on."""
    ends = config.num_steps, config.beta_start, config.beta_end
    match config.beta_schedule:
        case "linear":
            return DDPMPath.linear(*ends)
        case "scaled_linear":
            return DDPMPath.scaled_linear(*ends)
        case "cosine":
            return DDPMPath.cosine(config.num_steps)
