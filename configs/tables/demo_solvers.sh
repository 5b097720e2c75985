#!/bin/sh
# The tables of docs/solvers.md, one after the other, each of which may be stopped and continued:
#     sh configs/tables/demo_solvers.sh FACES [OPTION ...]
# FACES is the folder of aligned faces, of which those of data/lists/faces_heldout.txt are taken; options, such as --dry_run or
# --nproc 2, are those of util.reproduce_table.
[ -d "$1" ] || { echo "usage: sh configs/tables/demo_solvers.sh FACES [OPTION ...]" >&2; exit 2; }
faces=$1 status=0
shift

table() {                           # name, folder of the results, options ...
    name=$1 folder=$2
    shift 2
    python -m util.reproduce_table "configs/tables/$name.yaml" --data "$faces" --set data.list=faces_heldout \
        --save_dir "results/tables/$folder" "$@" || status=$?
    [ $status -ne 130 ] || exit 130                                     # interrupted
}

table demo_solvers demo_solvers --limit 20 "$@"
table demo_solvers demo_solvers_sigma_0.2 --limit 20 --set measurement.noise.sigma=0.2 \
    --methods dpps,stationary,diffpir,pigdm,dsg "$@"
table demo_solvers demo_solvers_samples --limit 5 --num_samples 4 "$@"
table demo_solvers_nonlinear demo_solvers_nonlinear --limit 10 "$@"
table demo_phase_retrieval demo_solvers_phase_retrieval --limit 3 "$@"
table demo_solvers_published demo_solvers_published --limit 3 "$@"
exit $status
