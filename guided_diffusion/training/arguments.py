"""The command lines of `guided_diffusion.train` and `.validate`, without what takes seconds to import."""

from util.command import Parser, natural, positive

REFERENCE_PHOTOGRAPHS = ("hubble_deep_field", "motorcycle_left", "rocket")      # scikit-image's, for the references

parser = Parser(
    prog="python -m guided_diffusion.train",
    description="Train a prior on a folder of photographs.",
    epilog="The same command continues a training that was interrupted, from state.pt in --out, and prolongs one "
    "whose phases have grown. On several GPUs: torchrun --nproc_per_node=N -m guided_diffusion.train ... with the "
    "same options; batch_size is shared among the processes. docs/training.md explains the training file.")
add = parser.add_argument
add("--data", required=True, metavar="FOLDER", help="of photographs")
add("--config", default="configs/train_demo.yaml", metavar="FILE", help="training file; default %(default)s")
add("--out", default="runs/train_demo", metavar="FOLDER", help="for checkpoints and curves; default %(default)s")
add("--init", metavar="FILE", help="weights to begin with, instead of random ones, of the network or a narrower one; "
    "once --out holds a state.pt, that is continued")
parse_training = parser.parse

parser = Parser(prog="python -m guided_diffusion.validate",
                description="Judge a prior: loss per noise level, and denoising beside classical methods.")
add = parser.add_argument
add("--model_config", default="configs/demo_model_config.yaml", help="the network; default %(default)s")
add("--diffusion_config", default="configs/demo_diffusion_config.yaml", help="its noise schedule; default %(default)s")
add("--checkpoint", metavar="FILE", help="the weights, in place of the model config's model_path")
add("--data", default="skimage", metavar="FOLDER", help="images that it was not trained on; default %(default)s")
add("--reference_data", metavar="FOLDER", help="other images, which the classical denoisers are tuned on; default: "
    f"scikit-image's {', '.join(REFERENCE_PHOTOGRAPHS)}")
add("--crop", type=positive, default=128, metavar="N", help="side of the centre crops; default %(default)s")
add("--limit", type=positive, metavar="N", help="the first N images only")
add("--draws", type=positive, default=2, metavar="N", help="noisy images per image and noise level; default 2")
add("--batch_size", type=positive, default=8, metavar="N", help="images at once; default %(default)s")
add("--seed", type=natural, default=0, help="of the noise; default %(default)s")
add("--gpu", type=natural, metavar="N", help="index of the GPU")
add("--out", default="results/validate", metavar="FOLDER",
    help="receives validation.md and validation.json; default %(default)s")
add("--overwrite", action="store_true", help="replace the figures in --out")
parse_validation = parser.parse
