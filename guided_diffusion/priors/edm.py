"""Networks under EDM's preconditioning (Karras et al., 2022) as noise predictors of a variance-preserving process."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from guided_diffusion.nn import Network
from guided_diffusion.priors.edm_networks import NETWORKS, EDMNetwork, NetworkChoice
from guided_diffusion.schedule import Schedule
from util.checkpoint import load_state_dict
from util.config.registry import Positive
from util.errors import UserError
from util.fetch import find_weights

RHO = 7                                             # of Karras et al., 2022, eq. 5
STEPS = 1000                                        # of the process that a network brings
ROUNDING = 1e-3                                     # of noise levels that are compared
PLAIN = "where you trust it, open it with the code of NVlabs/edm, and torch.save the state dict of its entry 'ema'"


@dataclass(frozen=True)
class EDM:
    """A network F under EDM's preconditioning D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    Args:
        network: {name: DhariwalUNet or SongUNet, parameters}, under NVIDIA's parameter names, or adm, under those of
            `create_model`, whose model_path and learn_sigma stay out.
        model_path: the state dict of F, or of NVIDIA's network around it.
        sigma_data: standard deviation of the images, of the training.
        sigma_min, sigma_max: the noise levels that the network knows.
        use_fp16: run the network under float16 autocast; weights and output stay float32.
    """

    network: NetworkChoice
    model_path: str
    sigma_data: Positive = 0.5
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    use_fp16: bool = False

    def checkpoint(self) -> Path:
        """The file of weights; UserError if it is not there."""
        return find_weights(self.model_path)

    def files(self) -> dict[str, Path]:
        """What decides the predictions besides the configuration."""
        return {"checkpoint": self.checkpoint()}

    def side(self) -> int:
        """The side of the images."""
        return NETWORKS.parts(self.network)[1]["image_size"]

    def learn_sigma(self) -> bool:
        """That there are no variance channels; UserError if there is no such network."""
        with torch.device("meta"):                  # its structure alone
            self._network()
        return False

    def process(self, diffusion: Mapping[str, object]) -> dict[str, object]:
        """Parameters of `create_sampler`: those of a noise predictor, and noise levels where `diffusion` names none.

        The levels are EDM's (eq. 5), from sigma_min to sigma_max, with alpha_bar = 1 / (1 + sigma^2).

        Raises:
            UserError: sigma_min is not less than sigma_max.
        """
        if self.sigma_min >= self.sigma_max:
            raise UserError(f"model config: sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}, expected "
                            "less and more")
        fixed = {"model_mean_type": "epsilon", "model_var_type": "fixed_small"}
        if "noise_schedule" in diffusion:
            return fixed
        steps = diffusion.get("steps", STEPS)
        sigmas = np.linspace(self.sigma_min ** (1 / RHO), self.sigma_max ** (1 / RHO), steps) ** RHO
        alpha_bar = np.append(1, 1 / (1 + sigmas ** 2))
        return {**fixed, "steps": steps, "noise_schedule": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()}

    def check_levels(self, schedule: Schedule) -> None:
        """UserError if a process has noise levels that the network does not know."""
        lowest, highest = (math.sqrt(1 / schedule.alphas_cumprod[index] - 1) for index in (0, -1))
        if lowest < self.sigma_min * (1 - ROUNDING) or highest > self.sigma_max * (1 + ROUNDING):
            raise UserError(f"the process has noise levels from sigma {lowest:.4g} to {highest:.4g}, but the network "
                            f"knows {self.sigma_min:g} to {self.sigma_max:g}; leave noise_schedule out of the "
                            "diffusion config, or set sigma_min and sigma_max of the model config if it was trained "
                            "for more")

    def load(self, schedule: Schedule) -> "EDMPrior":
        """The network with its weights, for the process `schedule`.

        Raises:
            UserError: its parameters or its weights are wrong.
        """
        network = self._network()
        load_plain(network, self.checkpoint())
        return EDMPrior(network, schedule, self.sigma_data, network.multiple)

    def _network(self) -> nn.Module:
        network = NETWORKS.make(self.network)
        if network.out_channels != 3 or NETWORKS.parts(self.network)[1].get("model_path"):
            raise UserError("model config: network has learn_sigma or model_path; leave both out, as EDM predicts no "
                            "variance and the weights are model_path of the config itself")
        return network.eval().to(memory_format=torch.channels_last)


class EDMPrior(Network):
    """eps = (x - D(x; sigma)) / sigma of a network F, at x = x_t / sqrt(alpha_bar), sigma^2 = 1 / alpha_bar - 1.

    With c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), c_in = 1 / sqrt(sigma^2 + s^2) and
    c_noise = log(sigma) / 4 (Karras et al., 2022, table 1), s being sigma_data; nothing cancels at small sigma in
    eps = sigma / (sigma^2 + s^2) x - s / sqrt(sigma^2 + s^2) F(c_in x, c_noise).

    Args:
        network: F(x (B, 3, H, W), c_noise (B,)) -> (B, 3, H, W).
        schedule: of the sampler that will call it: what noise levels its timesteps stand for.
        sigma_data: s.
        multiple: see `Network`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, sigma_data: float = 0.5, multiple: int = 1):
        super().__init__()
        self.network, self.sigma_data, self.multiple = network, sigma_data, multiple
        for name, values in (("timesteps", schedule.model_timesteps), ("sigmas", schedule.sqrt_recipm1_alphas_cumprod)):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def _forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        index = torch.searchsorted(self.timesteps.float(), timesteps.float() - 1e-3)        # see `Schedule.index_of`
        sigma = self.sigmas[index].to(x).view(-1, 1, 1, 1)
        x = x * (1 + sigma ** 2).sqrt()
        total = sigma ** 2 + self.sigma_data ** 2
        prediction = self.network(x / total.sqrt(), (sigma.log() / 4).flatten())
        return sigma / total * x - self.sigma_data / total.sqrt() * prediction


def load_plain(network: nn.Module, path: Path) -> None:
    """Load a state dict strictly; of a pickle that is more than one, the UserError says how to get one."""
    unused = network.unused if isinstance(network, EDMNetwork) else None
    try:
        load_state_dict(network, path, unused, select=_of_the_network)
    except UserError as error:
        if "refused" not in str(error):
            raise
        raise UserError(f"checkpoint {path} was refused and nothing in it was run: it holds more than a state dict; "
                        f"{PLAIN}") from None


def _of_the_network(found: dict) -> dict:
    """The parameters of F, which are below `model.` in NVIDIA's preconditioned networks."""
    found = found.get("ema", found)
    inner = all(str(name).startswith("model.") for name in found)
    return {str(name).removeprefix("model."): tensor for name, tensor in found.items()} if inner else found
