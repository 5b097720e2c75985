"""The command line of `guided_diffusion.tune`, without what takes seconds to import."""

from util.command import Parser, samples
from util.reproduce_table.arguments import add_options

JUDGES = ("psnr", "ssim", "lpips", "st_lpips", "chi_square")
CONSISTENCY = "consistency"

parser = Parser(prog="python -m guided_diffusion.tune", description="Tune settings of a task on a few images.")
add = parser.add_argument
add("--task_config", required=True, metavar="FILE", help="the task (YAML)")
add("--grid", action="append", required=True, metavar="KEY=A,B,C",
    help="values to try, such as conditioning.params.scale=0.1,0.3,1; repeatable: all combinations are run")
add("--out", required=True, metavar="FILE", help="receives the task with the best values")
add("--model_config", help="the network; default: what the task names, or the demo's")
add("--diffusion_config", help="the reverse process; default: what the task names, or the demo's")
add("--by", choices=[*JUDGES, CONSISTENCY], help="what decides: the highest psnr or ssim, the lowest lpips or "
    "st_lpips, the chi_square nearest to 1, or consistency: the highest psnr of those whose chi_square is between "
    "0.5 and 2, the nearest to 1 where none is; default: psnr, or chi_square where the truth is not known")
add("--of", choices=("samples", "mean"), default="samples",
    help="judge the samples one by one, or each image's mean of --samples; default %(default)s")
add("--samples", type=samples, default=1, metavar="K", help="posterior samples per image; default %(default)s")
add_options(add, overwrite="replace --out, and results of other settings in --save_dir")
parse_arguments = parser.parse
