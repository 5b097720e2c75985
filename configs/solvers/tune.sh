#!/bin/sh
# Tunes the main parameter of every solver on every linear task that it can serve, three values each on one crop, and writes
# configs/solvers/SOLVER/TASK.yaml:
#     sh configs/solvers/tune.sh CROPS [SOLVER ...]
# CROPS is a folder of training photographs of 64 x 64, the first of which is used. What is finished is not run again.
# $TUNE_OPTIONS are handed on to guided_diffusion.tune. The solvers are those of the default below, and ddrm, dcps and sitcom.
crops=$1
shift
corners=likelihood.corner=0.02,0.06,0.2
ten='diffusion.timestep_respacing="6,2,1,1"'
sixteen='diffusion.timestep_respacing="9,3,2,1,1"'
twenty='diffusion.timestep_respacing="12,4,2,1,1"'
forty='diffusion.timestep_respacing="24,8,4,2,2"'
more='diffusion.timestep_respacing="29,10,5,2,2"'

try() {                             # name, key=values, params, overrides ...; what cannot serve a task is passed over
    name=$1 grid=$2 params=$3
    shift 3
    for task in $tasks; do
        set_mask=
        case $task in
            random) file=demo_task ;;
            box) file=demo_box_inpainting set_mask="--set measurement.mask_opt.mask_len_range=[16,17]" ;;
            *) file=demo_$task ;;
        esac
        mkdir -p "configs/solvers/$name"
        python -m guided_diffusion.tune --task_config "configs/${file}_config.yaml" --data "$crops" --limit 1 \
            --grid "conditioning.params.$grid" --by consistency --out "configs/solvers/$name/$task.yaml" --overwrite \
            --save_dir "results/tune/$name/$task" $TUNE_OPTIONS --set model.image_size=64 $set_mask \
            --set conditioning.method="$method" --set conditioning.params="$params" "$@"
    done
}

tune() {
    name=$1 method=$1 tasks="super_resolution box random gaussian_deblur motion_deblur"
    case $name in
        dpps) try dpps scale=0.8,1.1,1.5 '{likelihood: gaussian}' --set $twenty ;;
        stationary) method=dpps; try $name $corners '{likelihood: {name: stationary}}' --set $sixteen ;;
        stationary_48) method=dpps; try $name $corners '{likelihood: {name: stationary}}' --set $more ;;
        dps) method=ps; try dps scale=0.1,0.25,0.6 '{likelihood: point}' --set $twenty ;;
        diffpir) try diffpir lam=0.4,0.8,1.75 '{zeta: 1.0}' --set $forty ;;
        pigdm) try pigdm scale=0.7,1,1.4 '{}' --set $twenty ;;
        dsg) try dsg weight=0.1,0.2,0.4 '{}' --set $twenty ;;
        fast_dips) try fast_dips rho=0.25,0.5,1 '{}' --set $forty ;;
        ddnm) tasks=${tasks% *}; try ddnm eta=0.5,0.85,1 '{steps: 40}' --set $forty ;;
        ddrm) tasks=${tasks% *}; try ddrm eta=0.5,0.85,1 '{steps: 40}' --set $forty ;;
        red_diff) try red_diff lam=0.12,0.25,0.5 '{lr: 0.1}' --set $forty ;;
        daps) try daps spread=0.2,0.4,0.7 '{ode_steps: 3}' --set $twenty ;;
        pnp_dm) try pnp_dm rho_min=0.03,0.05,0.1 '{iterations: 10}' --set $twenty ;;
        dmps) try dmps scale=0.5,1,1.75 '{}' --set diffusion.sampler=ddpm --set diffusion.timestep_respacing=50 ;;
        dcps) try dcps lr=0.75,1.5,3 '{fits: 1, langevin_steps: 2}' --set $twenty ;;
        sitcom) try sitcom lr=0.02,0.05,0.1 '{iterations: 4}' --set $ten ;;
        *) echo "no such solver: $name" >&2; exit 2 ;;
    esac
}

[ -d "$crops" ] || { echo "usage: sh configs/solvers/tune.sh CROPS [SOLVER ...]" >&2; exit 2; }
[ $# -gt 0 ] || set -- dpps dps stationary stationary_48 diffpir pigdm dsg fast_dips ddnm red_diff daps pnp_dm dmps
for solver; do tune "$solver"; done
