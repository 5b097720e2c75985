"""What the tests of training train: a network and phases, as their YAML files say them."""

MODEL = dict(image_size=16, num_channels=32, num_res_blocks=1, channel_mult="1,1", attention_resolutions="",
             num_head_channels=16, learn_sigma=True, use_scale_shift_norm=True)
PHASES = [dict(crop=8, batch_size=2, steps=3), dict(crop=16, batch_size=2, steps=3)]
