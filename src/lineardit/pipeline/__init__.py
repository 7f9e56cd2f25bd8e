"""From prompts to pictures: conditions, noise, the denoising loop as a generator of states, decoding.

What differs between models is said once, where a `Pipeline` is made, by three objects:

conditioning   what prompts become before the first step (`pipeline.conditioning`)
network        what a network is shown beside latents and times, and its two branches (`pipeline.networks`)
trajectory     the path the model was trained on, its samplers and their times (`pipeline.trajectory`)
"""

from lineardit.pipeline.pipeline import Pipeline as Pipeline
from lineardit.pipeline.sampling import CONSISTENCY as CONSISTENCY
from lineardit.pipeline.sampling import Sampling as Sampling
from lineardit.pipeline.settings import LARGEST_SEED as LARGEST_SEED
from lineardit.pipeline.settings import Output as Output
from lineardit.pipeline.settings import OutputType as OutputType
from lineardit.pipeline.settings import Settings as Settings
