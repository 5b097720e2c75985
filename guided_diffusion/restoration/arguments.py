"""The command line of `sample_condition.py`, without what takes seconds to import."""

from util.command import DEFAULT_PRECISION, PRECISIONS, Parser, positive, samples


def positive_or_auto(text: str) -> int | str:
    """A whole number of 1 or more, or "auto", for argparse."""
    return text if text == "auto" else positive(text)


parser = Parser(prog="sample_condition.py",
                description="Restore images with a diffusion prior; without options, the demo.")
add = parser.add_argument
add("--model_config", help="the network (YAML); default: what the task names, or the demo's")
add("--diffusion_config", help="the reverse process (YAML); default: what the task names, or the demo's")
add("--task_config", default="configs/demo_task_config.yaml", help="method, data, operator and noise (YAML)")
add("--gpu", type=int, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
add("--save_dir", default="./results", help="where results go; default %(default)s")
add("--data", metavar="FOLDER", help="restore these images, or 'skimage' for scikit-image's photographs")
add("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
    help="change a configuration value, such as conditioning.params.scale=0.4; repeatable")
add("--seed", type=int, default=0, help="of all random numbers; default %(default)s")
add("--batch_size", type=positive_or_auto, metavar="N", help="images restored together, or 'auto' for the number "
    "that is fastest here; default: by image size, and more of them on a GPU")
add("--num_samples", type=samples, default=1, metavar="N", help="posterior samples per image; default %(default)s")
add("--limit", type=positive, metavar="N", help="restore the first N images only")
add("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION,
    help="number format of the network; default %(default)s: float32, with TF32 convolutions on GPUs that have it")
add("--compile", action="store_true", help="compile the network by torch.compile, which takes minutes")
add("--tile", type=positive, metavar="N", help="restore images larger than N x N in overlapping windows of N x N")
add("--save_measurements", action="store_true", help="save the measurements, masks and kernels to measurements/")
add("--load_measurements", metavar="FOLDER", help="restore exactly these saved measurements")
add("--progress", type=positive, metavar="N", help="save the state after every N-th step to progress/")
add("--fetch", action="store_true", help="fetch published weights that are missing, see python -m util.fetch")
add("--plugin", action="append", default=[], metavar="FILE.py", help="run a file that registers operators, noises, "
    "methods or priors of your own; repeatable")
add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS; default: models")
add("--overwrite", action="store_true", help="replace the results of an earlier run in the same folder")
add("--print_config", action="store_true", help="print the resolved configuration with the origin of each value")
add("--list", action="store_true", help="print operators, noises, methods, ... with their parameters and defaults")
parse_arguments = parser.parse
