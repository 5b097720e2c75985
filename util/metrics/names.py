"""What restorations are judged by: titles and formats of scores and costs, and what of each is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of metrics.csv, or a score of a set of images; `better` is 1 where higher is, -1 where lower is, else 0.
    """

    title: str
    form: str
    better: int = 0

    @property
    def heading(self) -> str:
        """The title with what is better."""
        return self.title + {1: ", higher is better", -1: ", lower is better", 0: ""}[self.better]

    def words(self, value: float, sign: str = "") -> str:
        """A value as it is shown; `sign` is "+" where a plus is."""
        return f"{value:{sign}{self.form}}".rstrip(".")         # "#.3g" leaves the point of 210.


METRICS = {
    "psnr": Metric("PSNR (dB)", ".2f", 1),
    "ssim": Metric("SSIM", ".3f", 1),
    "lpips_vgg": Metric("LPIPS (vgg)", ".3f", -1),
    "lpips_alex": Metric("LPIPS (alex)", ".3f", -1),
    "st_lpips": Metric("ST-LPIPS (vgg)", ".3f", -1),
    "psnr_aligned": Metric("aligned PSNR (dB)", ".2f", 1),
    "ssim_aligned": Metric("aligned SSIM", ".3f", 1),
    "lpips_vgg_aligned": Metric("aligned LPIPS (vgg)", ".3f", -1),
    "st_lpips_aligned": Metric("aligned ST-LPIPS (vgg)", ".3f", -1),
    "distance": Metric("distance", "#.4g"),
    "chi_square": Metric("chi-square", "#.3g"),
    "std": Metric("deviation", ".3f"),
    "error_to_std": Metric("error / deviation", ".2f"),
    "network_evaluations": Metric("evaluations", ".0f", -1),
    "backward_passes": Metric("backward passes", ".0f", -1),
    "seconds": Metric("seconds", ".2f", -1),
    "psnr_input": Metric("PSNR of the lifted measurement (dB)", ".2f"),
    "ssim_input": Metric("SSIM of the lifted measurement", ".3f"),
    "relative_seconds": Metric("seconds over the reference's", ".2f", -1),
    "peak_memory": Metric("peak memory (MiB)", ".0f", -1),
    "fid": Metric("FID", ".2f", -1),
    "kid": Metric("KID", ".5f", -1),
}
SHORT = {"lpips": "lpips_vgg", "lpips_aligned": "lpips_vgg_aligned"}        # names of VGG's, the papers' LPIPS
OF_SETS = ("fid", "kid")                            # no columns: scores of all images together
OF_RUNS = ("relative_seconds", "peak_memory")       # no columns either: costs of a run in a table of several


def metric_of(name: str) -> Metric:
    """What a name, perhaps a short one, stands for."""
    return METRICS[SHORT.get(name, name)]
