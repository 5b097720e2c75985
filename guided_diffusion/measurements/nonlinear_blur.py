"""Nonlinear deblurring: the blur is a neural network with a random code."""

from torch import Tensor

from guided_diffusion.measurements.base import Operator, register_operator
from guided_diffusion.measurements.kernel_wizard import CODE_CHANNELS, ENCODER, STRIDE, KernelWizard
from util.checkpoint import load_state_dict
from util.config.config import read_yaml
from util.errors import UserError
from util.fetch import find_weights
from util.seeding import ImageRandomness

WEIGHTS = "models/GOPRO_wVAE.pth"
CODE_STD = 1.2
WHERE_TO_GET = ("the README of github.com/VinAIResearch/blur-kernel-space-exploring links GOPRO_wVAE.pth, whose place "
                f"is {WEIGHTS}; operator gopro_blur needs no download")


@register_operator("nonlinear_blur")
class NonlinearBlurOperator(Operator):
    """A(x) = clamp(2 F((x + 1)/2, k) - 1, -1, 1), F the network of Tran et al. (2021) (DPS, eq. 58).

    k ~ 1.2 N(0, I), (B, 512, H/128, W/128), is drawn per image and kept; (B, 3, H, W) in [-1, 1] -> the same. H and W
    are multiples of 128. At the border the network's convolutions see zeros.

    Args:
        model_path: the network's weights, from the working directory or the repository; models/GOPRO_wVAE.pth unless
            given.
        opt_yml_path: DPS's key: the official repository's options (YAML), whose KernelWizard.pretrained is the path of
            the weights.
        redraw: a new k at every call, as the official code has it, so that guidance compares with another blur than
            the measurement's.

    Raises:
        UserError: the weights are missing, damaged, or not this network's.
    """

    def __init__(self, model_path: str | None = None, opt_yml_path: str | None = None, redraw: bool = False):
        super().__init__()
        if model_path is not None and opt_yml_path is not None:
            raise UserError(f"{self.name}: model_path and opt_yml_path both name the weights; leave one out")
        if opt_yml_path is not None:
            model_path = self._path_in_options(opt_yml_path)
        self.redraw = redraw
        self.network = KernelWizard()
        self._load(model_path or WEIGHTS)
        self.register_drawn("code")                                                     # (B, 512, H/128, W/128)

    def _path_in_options(self, path: str) -> str:
        try:
            options = read_yaml(path, f"{self.name}: opt_yml_path")
        except UserError as error:
            raise UserError(f"{error}; set model_path: {WEIGHTS} instead of it ({WHERE_TO_GET})") from None
        section = options.get("KernelWizard")
        found = section.get("pretrained") if isinstance(section, dict) else None
        if not isinstance(found, str):
            raise UserError(f"{self.name}: {path} has no KernelWizard.pretrained, expected the path of the weights; "
                            f"set model_path: {WEIGHTS} instead of opt_yml_path")
        return found

    def _load(self, path: str) -> None:
        try:
            self.files = {path: find_weights(path, remedy="")}
            load_state_dict(self.network, self.files[path], unused=ENCODER)
        except UserError as error:
            raise UserError(f"{self.name}: {error}; {WHERE_TO_GET}") from None
        self.network.eval().requires_grad_(False)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Draw a code per image of `shape` (B, 3, H, W).

        Raises:
            UserError: the images are not of 3 channels, or a side is no multiple of 128.
        """
        batch, channels, height, width = shape
        if channels != 3:
            raise UserError(f"{self.name}: found images of {channels} channels, expected 3")
        if height % STRIDE or width % STRIDE:
            raise UserError(f"{self.name}: found images of {height}x{width}, expected sides that are multiples of "
                            f"{STRIDE}; set model.image_size to 128 or 256, or use operator gopro_blur")
        self.randomness = randomness
        self.code = self.code.new_empty(batch, CODE_CHANNELS, height // STRIDE, width // STRIDE)
        self.code = self.draw_code()

    def draw_code(self) -> Tensor:
        """The next k of every image, in the shape of the current one."""
        return CODE_STD * self.randomness.randn_like(self.code)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape."""
        if self.redraw:
            self.code = self.draw_code()
        return (2 * self.network((x + 1) / 2, self.code) - 1).clamp(-1, 1)
