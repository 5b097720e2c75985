"""Networks in folders of the diffusers library: a `UNet2DModel` and the scheduler that it was trained with."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from guided_diffusion.nn import Network
from guided_diffusion.schedule import Schedule
from util.checkpoint import load_state_dict
from util.command import user_path
from util.config.config import REPOSITORY
from util.config.registry import Count
from util.errors import UserError

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")
MEAN_TYPES = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "start_x"}
VAR_TYPES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large",
             "fixed_large_log": "fixed_large", "learned_range": "learned_range"}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}     # of attention, before 0.15


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder that the diffusers library has saved: a `UNet2DModel`, or a pipeline with one, of pixels.

    Args:
        model_path: the folder, with config.json and diffusion_pytorch_model.safetensors or .bin (in a pipeline below
            unet/), and scheduler_config.json (below scheduler/).
        image_size: side of the images; null for the sample_size of config.json.
        class_label: to restore with, for a network with classes.
        use_fp16: run the network under float16 autocast; weights and output stay float32.
    """

    model_path: str
    image_size: Count | None = None
    class_label: int | None = None
    use_fp16: bool = False

    @property
    def root(self) -> Path:
        """The folder, from the working directory or else from the repository's root; UserError if there is none."""
        wanted = user_path(self.model_path)
        for place in (wanted, REPOSITORY / wanted):
            if place.is_dir():
                return place
        raise UserError(f"model config: model_path {self.model_path} is no folder, expected one that the diffusers "
                        "library has saved; models/README.md says where such come from")

    @property
    def network_folder(self) -> Path:
        """Where config.json and the weights are."""
        return self.root / "unet" if (self.root / "unet").is_dir() else self.root

    def files(self) -> dict[str, Path]:
        """What decides the predictions, by its name below the folder: weights, config and scheduler.

        Raises:
            UserError: one of them is missing.
        """
        found = [_first(self.network_folder, WEIGHTS), _first(self.network_folder, ("config.json",)),
                 _first(self.root, SCHEDULERS)]
        return {path.relative_to(self.root).as_posix(): path for path in found}

    def checkpoint(self) -> Path:
        """The weights; UserError if they or another file are missing."""
        return next(iter(self.files().values()))

    def config(self) -> dict[str, object]:
        """The content of config.json; UserError unless it is of a network that predicts pixels at discrete timesteps.
        """
        file = _first(self.network_folder, ("config.json",))
        config = _read(file)
        channels, outputs = (config.get(f"{end}_channels", 3) for end in ("in", "out"))
        for fits, found, expected in (
                (config.get("_class_name") == "UNet2DModel", config.get("_class_name"), "a UNet2DModel"),
                (channels in (1, 3), f"a network of {channels} channels", "1 (grey) or 3 (RGB), so no latents"),
                (outputs in (channels, 2 * channels), f"{channels} channels in and {outputs} out",
                 "as many out, or twice as many with a learned variance"),
                (config.get("time_embedding_type", "positional") == "positional",
                 f"time_embedding_type {config.get('time_embedding_type')}", "positional, for timesteps")):
            if not fits:
                raise UserError(f"{file} describes {found}, expected {expected}; choose another model_path")
        if (config.get("num_class_embeds") is None) != (self.class_label is None):
            raise UserError(f"{file} has num_class_embeds {config.get('num_class_embeds')}, and the model config "
                            f"class_label {self.class_label}; set it where there are classes, and only there")
        if self.class_label is not None and not 0 <= self.class_label < config["num_class_embeds"]:
            raise UserError(f"model config: class_label is {self.class_label}, expected 0 to "
                            f"{config['num_class_embeds'] - 1}")
        return config

    def side(self) -> int:
        """The side of the images."""
        size = self.image_size or self.config().get("sample_size")
        if not isinstance(size, int):
            raise UserError(f"{self.network_folder / 'config.json'} has sample_size {size}, expected the side of "
                            "square images; set image_size in the model config")
        return size

    def learn_sigma(self) -> bool:
        """Whether the network has variance channels."""
        config = self.config()
        return config.get("out_channels", 3) == 2 * config.get("in_channels", 3)

    def process(self, diffusion: Mapping[str, object]) -> dict[str, object]:
        """The parameters of `create_sampler` that the scheduler's file says: betas, mean and variance type.

        Args:
            diffusion: a diffusion config, which changes nothing here.

        Raises:
            UserError: it is no scheduler of discrete timesteps, or of another prediction.
        """
        file = _first(self.root, SCHEDULERS)
        config = _read(file)
        if not {"beta_schedule", "trained_betas"} & set(config):
            raise UserError(f"{file} describes a {config.get('_class_name')}, which has no betas; expected a scheduler "
                            "of discrete timesteps, such as DDPMScheduler")
        kinds = {"prediction_type": MEAN_TYPES, "variance_type": VAR_TYPES}
        found = {key: config.get(key) or next(iter(names)) for key, names in kinds.items()}
        for key, names in kinds.items():
            if found[key] not in names:
                raise UserError(f"{file} has {key} {found[key]}, expected one of {', '.join(names)}; choose another "
                                "model_path")
        if config.get("rescale_betas_zero_snr"):
            raise UserError(f"{file} has rescale_betas_zero_snr, so nothing of the image is left in x_T and beta is 1 "
                            "there; expected betas below 1; choose another model_path")
        try:
            betas = _library().DDPMScheduler.from_config(config).betas.double()
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(f"{file} describes no scheduler that diffusers knows: {error}") from None
        return {"steps": len(betas), "noise_schedule": betas.tolist(), "rescale_timesteps": False,
                "model_mean_type": MEAN_TYPES[found["prediction_type"]],
                "model_var_type": VAR_TYPES[found["variance_type"]]}

    def load(self, schedule: Schedule) -> "DiffusersNetwork":
        """The network with its weights, every name and shape matching.

        Args:
            schedule: of the sampler, which a network of timesteps has no need of.

        Raises:
            UserError: files are missing or damaged, or do not fit each other.
        """
        config, weights = self.config(), self.checkpoint()
        try:
            network = _library().UNet2DModel.from_config(config)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.network_folder / 'config.json'} describes no network: {error}") from None
        load_state_dict(network, weights, select=_under_new_names)
        return DiffusersNetwork(network, self.class_label)


class DiffusersNetwork(Network):
    """A `UNet2DModel` as model(x_t, t) of colour images. A grey one sees the three channels as images of their own.

    Args:
        network: the library's.
        class_label: of all images; None for a network without classes.
    """

    def __init__(self, network: nn.Module, class_label: int | None = None):
        super().__init__()
        self.network, self.class_label = network, class_label
        self.multiple = 2 ** (len(network.config.block_out_channels) - 1)

    def _forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        images = x.reshape(-1, self.network.config.in_channels, height, width)
        t = timesteps.repeat_interleave(len(images) // batch)
        if y is None and self.class_label is not None:
            y = torch.full((batch,), self.class_label, device=x.device)
        labels = None if y is None else y.repeat_interleave(len(images) // batch)
        output = self.network(images, t, labels, return_dict=False)[0]
        if len(images) == batch:
            return output
        return output.view(batch, channels, -1, height, width).transpose(1, 2).reshape(batch, -1, height, width)


def _library() -> ModuleType:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise UserError(f"model config: format diffusers needs the package diffusers ({error}); pip install diffusers"
                        ) from None


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no {' or '.join(names)}, expected a folder that the diffusers library has saved; "
                    "download all of it, or save it anew by save_pretrained")


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, expected an object; download it again")
    return content


def _under_new_names(found: dict) -> dict:
    """The state dict of a file of whatever age under today's names of the attention layers."""
    renamed = {}
    for name, tensor in found.items():
        layer, _, kind = str(name).rpartition(".")
        block, _, old = layer.rpartition(".")
        new = OLD_NAMES.get(old, old) if ".attentions." in f".{block}." else old
        renamed[f"{block}.{new}.{kind}" if block else name] = tensor
    return renamed
