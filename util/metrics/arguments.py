"""The command line of `util.compute_metric`, without what takes seconds to import."""

from util.command import Parser, some_of

SCORES = ("psnr", "ssim", "lpips_vgg", "lpips_alex", "st_lpips", "fid", "kid")

parser = Parser(prog="python -m util.compute_metric", description=(
    "Score restored images against true ones, paired by file name; exit status 1 if some could not be scored."))
add = parser.add_argument
add("restored", metavar="A", help="folder of restored images; or, alone, a results folder (recon/ against label/)")
add("labels", metavar="B", nargs="?", help="folder of true images")
add("--metrics", type=some_of(SCORES), default=SCORES, metavar="NAME,...", help=f"default: {','.join(SCORES)}")
add("--weights_dir", metavar="FOLDER", help="holds the networks' weights; default: models")
add("--save_dir", metavar="FOLDER", help="where scores.json and scores.csv go; default: the results folder, if one")
add("--gpu", type=int, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
parse_arguments = parser.parse
