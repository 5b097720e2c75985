#!/bin/sh
# Tunes the main parameter of every solver on every linear task that it can serve, five values each on four training faces,
# and writes configs/solvers/SOLVER/TASK.yaml:
#     sh configs/solvers/tune.sh FACES [SOLVER ...]
# FACES holds aligned faces under the names of data/lists/faces_tune.txt. What is finished is not run again. TMPD and
# projection have nothing to tune, fps_smc and mcgdiff have their defaults but for the particles.
faces=$1
shift
scales=scale=0.7,1,1.4,1.8,2.4
corners=likelihood.corner=0.007,0.02,0.05,0.12,0.3
etas=eta=0,0.3,0.6,0.85,1
ten='diffusion.timestep_respacing="6,2,1,1"'
few='diffusion.timestep_respacing="6,1,1,1,1"'
twenty='diffusion.timestep_respacing="12,4,2,1,1"'
forty='diffusion.timestep_respacing="24,8,4,2,2"'
hundred='diffusion.timestep_respacing="60,20,10,5,5"'
more='diffusion.timestep_respacing="29,10,5,2,2"'

try() {                             # name, key=values, params, overrides ...; what cannot serve a task is passed over
    name=$1 grid=$2 params=$3
    shift 3
    for task in $tasks; do
        case $task in
            random) file=inpainting ;;
            box) file=box_inpainting ;;
            *) file=$task ;;
        esac
        mkdir -p "configs/solvers/$name"
        python -m guided_diffusion.tune --task_config "configs/demo_faces_${file}_config.yaml" --data "$faces" \
            --set data.list=faces_tune --save_dir "results/tune/$name/$task" \
            --grid "conditioning.params.$grid" --by consistency --out "configs/solvers/$name/$task.yaml" --overwrite \
            --set conditioning.method="$method" --set conditioning.params="$params" "$@"
    done
}

tune() {
    name=$1 method=$1 tasks="super_resolution box random gaussian_deblur motion_deblur"
    case $name in
        dpps) try dpps $scales '{likelihood: gaussian}' --set $twenty ;;
        stationary)
            method=dpps
            tasks="super_resolution gaussian_deblur motion_deblur"
            try $name $scales '{likelihood: {name: stationary, corner: 0.03, gradients: [0, 1, 2, 3]}}' --set $few
            tasks="box random"      # missing pixels: steps with and without a gradient take turns
            try $name $scales '{likelihood: {name: stationary, corner: 0.03, gradients: [1, 3, 5, 7]}}' --set $few ;;
        stationary_48) method=dpps; try $name $corners '{scale: 1.5, likelihood: {name: stationary}}' --set $more ;;
        dps) method=ps; try dps scale=0.1,0.25,0.6,1.5,4 '{likelihood: point}' --set $twenty ;;
        dps_100) method=ps; try $name scale=0.5,1,2,4,8 '{likelihood: point}' --set $hundred ;;
        diffpir) try diffpir lam=0.2,0.4,0.8,1.75,3.5 '{zeta: 1.0}' --set $forty ;;
        pigdm) try pigdm scale=0.7,1,1.4,2.4,4 '{}' --set $twenty ;;
        dsg) try dsg weight=0.1,0.2,0.4,0.6,0.8 '{}' --set $twenty ;;
        fast_dips) try fast_dips rho=16,32,64,128,256 '{}' --set $forty ;;
        ddnm) tasks=${tasks% *}; try ddnm $etas '{steps: 40}' --set $forty ;;
        ddrm) tasks=${tasks% *}; try ddrm $etas '{steps: 40}' --set $forty ;;
        red_diff) try red_diff lam=0.003,0.02,0.1,0.4,1.5 '{lr: 0.3}' --set $forty ;;
        daps) try daps spread=0.1,0.2,0.4,0.7,1 '{ode_steps: 3}' --set $twenty ;;
        pnp_dm) try pnp_dm rho_min=0.02,0.05,0.1,0.2,0.4 '{iterations: 10}' --set $twenty ;;
        dmps) try dmps scale=0.5,1,1.75,3,5 '{}' --diffusion_config configs/demo_ddpm_diffusion_config.yaml ;;
        dcps) try dcps lr=0.4,0.75,1.5,3,6 '{fits: 1, langevin_steps: 2}' --set $twenty ;;
        sitcom) try sitcom lr=0.01,0.02,0.05,0.1,0.2 '{iterations: 4}' --set $ten ;;
        mcg) try mcg scale=0.1,0.4,1.6,6.4,25 '{}' --set $twenty ;;
        ilvr) try ilvr factor=1,2,4,8,16 '{}' --set $twenty ;;
        pnp_admm) try pnp_admm rho=0.01,0.03,0.1,0.3,0.9 '{}' ;;
        admm_tv) try admm_tv lam=0.0003,0.001,0.003,0.01,0.03 '{}' ;;
        *) echo "no such solver: $name" >&2; exit 2 ;;
    esac
}

[ -d "$faces" ] || { echo "usage: sh configs/solvers/tune.sh FACES [SOLVER ...]" >&2; exit 2; }
[ $# -gt 0 ] || set -- dpps dps dps_100 stationary diffpir pigdm ddnm red_diff daps dsg fast_dips dmps ddrm pnp_dm sitcom \
    dcps stationary_48 mcg ilvr pnp_admm admm_tv
for solver; do tune "$solver"; done
