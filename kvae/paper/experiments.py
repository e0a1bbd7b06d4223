"""The experiments of Irie et al. (2023): the settings that each table compares, and the published results.

    python launch/sweep.py --table=3 --dataset=photos
    python -m kvae.report runs/paper/photos --table=3

`BASE` holds the fields that define the default setting, with their values in the configs of `CONFIGS`. A setting lists
the fields that differ from `BASE`. A table has a title and rows, {setting: label}. `PUBLISHED` holds the paper's
results by table, data set and setting. Each result is a (mean, standard deviation) over seeds: first the loss, in the
data set's `loss_unit`; then thousands of steps until the loss is within 10% of the lowest and, in Tables 2 and 4,
within 20%.

Widths are in nodes of the grid. The hard neighbourhood moves a winner's neighbours with weight min(1, width^2).
"""

from kvae.paper.recipes import NO_MAP, QUANTIZER_ROWS, SIZES, quantizer, quantizer_settings

CONFIGS = {
    "photos": dict(config="configs/photos_sweep.py", loss_unit="1e-3", seeds=5),
    "cifar10": dict(config="configs/cifar10_vqvae.py", loss_unit="1e-3", seeds=10),
    "folder": dict(config="configs/wallpapers_vqvae.py", loss_unit="1e-3", seeds=3),
    "imagenet": dict(config="configs/imagenet_vqvae2.py", loss_unit="1e-3", seeds=5),
    "faces": dict(config="configs/faces_vqvae2.py", loss_unit="1e-4", seeds=5),
}
"""Config, unit of the loss in tables, and number of seeds of each data set; photos and folder are not in the paper."""

BASE = {"model.augmentations": (), "optimizer.name": "adam"} | quantizer(
    name="kohonen",
    grid_shape=(16, 32),
    neighborhood="hard",
    topology="plane",
    initial_width=1.0,
    lowest_width=0.0,
    shrink_step=0.1,
    radius=1.5,
    decay=0.99,
    init_count=1.0,
    update_empty=True,
    metric="euclidean",
    gradient="straight_through",
    restart_below=0.0,
)

# The kernel of the paper's "Gaussian" rows. The authors' code calls it Gaussian, but it differs from Eq. 16.
EXPONENTIAL = quantizer(neighborhood="exponential", initial_width=10.0)
LINE = quantizer(grid_shape=(512,))
GRADIENT = quantizer(name="gradient", neighborhood="none")
NARROWING = quantizer(neighborhood="gaussian", initial_width=4.0)

SETTINGS = {
    "ema": NO_MAP,
    "ema_n0": NO_MAP | quantizer(init_count=0.0),
    "ema_keep": NO_MAP | quantizer(update_empty=False),
    "ema_n0_keep": NO_MAP | quantizer(init_count=0.0, update_empty=False),
    "hard": {},
    "hard_n0": quantizer(init_count=0.0),
    "hard_keep": quantizer(update_empty=False),
    "hard_n0_keep": quantizer(init_count=0.0, update_empty=False),
    "exponential": EXPONENTIAL,
    "hard_line": LINE,
    "hard_tau1": quantizer(shrink_step=1.0),
    "hard_tau0.01": quantizer(shrink_step=0.01),
    "exponential_line": EXPONENTIAL | LINE,
    "exponential_tau1": EXPONENTIAL | quantizer(shrink_step=1.0),
    "exponential_tau0.01": EXPONENTIAL | quantizer(shrink_step=0.01),
    "gradient": GRADIENT,
    "som_vae": GRADIENT | quantizer(neighborhood="hard", pull="codeword", neighbor_weight=0.1),
    # The hard weight is the square of the width: weights of 0.1 and 0.3 are widths of 0.32 and 0.55 nodes.
    "hard_to_0.32": quantizer(lowest_width=0.1**0.5),
    "hard_to_0.55": quantizer(lowest_width=0.3**0.5),
    "hard_to_0.55_slowly": quantizer(lowest_width=0.3**0.5, shrink_step=0.003),
    "hard_at_1": quantizer(shrink_step=0.0),
    "gaussian_4_to_0.5": NARROWING | quantizer(lowest_width=0.5),
    "gaussian_4_to_1": NARROWING | quantizer(lowest_width=1.0),
}
for codes in SIZES:
    suffix = "" if codes == 512 else f"_{codes}"
    SETTINGS |= {f"{name}{suffix}": fields for name, fields in quantizer_settings(codes).items()}

TABLES = {
    "1": dict(
        title="Sensitivity of EMA-VQ to the initial count N and to the update of empty codes",
        rows={
            "ema_n0_keep": "EMA-VQ, N = 0, empty codes kept",
            "ema_keep": "EMA-VQ, N = 1, empty codes kept",
            "ema_n0": "EMA-VQ, N = 0, empty codes updated",
            "ema": "EMA-VQ, N = 1, empty codes updated",
        },
    ),
    "2": dict(
        title="Neighbourhoods",
        rows={"ema": "none (EMA-VQ)", "hard": "hard, 2D", "exponential": "exponential (the paper: Gaussian), 2D"},
    ),
    "3": dict(
        title="Robustness of the map where EMA-VQ is sensitive; N is the initial count",
        rows={
            "ema_n0_keep": "EMA-VQ, N = 0, empty codes kept",
            "hard_n0_keep": "map, N = 0, empty codes kept",
            "ema_keep": "EMA-VQ, N = 1, empty codes kept",
            "hard_keep": "map, N = 1, empty codes kept",
            "ema_n0": "EMA-VQ, N = 0, empty codes updated",
            "hard_n0": "map, N = 0, empty codes updated",
            "ema": "EMA-VQ, N = 1, empty codes updated (Table 2)",
            "hard": "map, N = 1, empty codes updated (Table 2)",
        },
    ),
    "4": dict(
        title="Grids and shrink steps",
        rows={
            "hard_line": "hard, 1D, tau 0.1",
            "hard_tau1": "hard, 2D, tau 1",
            "hard": "hard, 2D, tau 0.1",
            "hard_tau0.01": "hard, 2D, tau 0.01",
            "exponential_line": "exponential, 1D, tau 0.1",
            "exponential_tau1": "exponential, 2D, tau 1",
            "exponential": "exponential, 2D, tau 0.1",
            "exponential_tau0.01": "exponential, 2D, tau 0.01",
        },
    ),
    "5": dict(
        title="Codebooks learned by gradient descent and by moving averages",
        rows={
            "gradient": "gradient",
            "ema": "EMA-VQ",
            "som_vae": "SOM-VAE (gradient, neighbours pulled to the codeword)",
            "hard": "map (KSOM)",
        },
    ),
    "schedules": dict(
        title="Beyond the paper: how the neighbourhood shrinks, and whether the map stays in order",
        rows={
            "ema": "no map (EMA-VQ)",
            "hard": "hard, tau 0.1 (the paper's)",
            "hard_tau0.01": "hard, tau 0.01",
            "hard_to_0.55_slowly": "hard, tau 0.003, width not below 0.55 nodes",
            "hard_to_0.32": "hard, tau 0.1, width not below 0.32 nodes",
            "hard_to_0.55": "hard, tau 0.1, width not below 0.55 nodes",
            "hard_at_1": "hard, width constant at 1 node",
            "gaussian_4_to_0.5": "Gaussian, width from 4 nodes to 0.5",
            "gaussian_4_to_1": "Gaussian, width from 4 nodes to 1",
        },
    ),
    "peers": dict(
        title="Beyond the paper: ways to learn 512 codes, all with the same recipe",
        rows={
            "tuned_ema": "EMA-VQ",
            "tuned_ema_restarts": "EMA-VQ, unused codes restart at vectors of the batch",
            "tuned_ema_restarts_8": "the same, 8-dimensional codewords",
            "tuned_ema_restarts_3": "the same, 3-dimensional codewords",
            "tuned_cosine": "restarts, 8 dimensions, cosine similarity",
            "tuned_rotation": "restarts, 8 dimensions, rotation trick",
            "tuned_fsq": "FSQ, 8 x 8 x 8",
            "tuned_hard": "map, 16 x 32, hard, tau 0.1 (the paper's neighbourhood)",
            "tuned_gaussian": "map, 16 x 32, Gaussian, width from 4 nodes to 0.6",
            "tuned_cube": "map, 8 x 8 x 8, Gaussian, width from 4 nodes to 0.5, tau 0.07",
            "tuned_map": "map, 16 x 32, Gaussian, width from 2 nodes to 0.7, 3 dimensions",
        },
    ),
    "priors": dict(
        title="Beyond the paper: the tokenisers of the table of priors, see `kvae.paper.prior_arms`",
        rows={
            "tuned_map": "map, 16 x 32, Gaussian, width from 2 nodes to 0.7, 3 dimensions",
            "tuned_cube": "map, 8 x 8 x 8, Gaussian, width from 4 nodes to 0.5, tau 0.07",
            "tuned_ema_restarts_3": "EMA-VQ with restarts, 3 dimensions",
            "tuned_fsq": "FSQ, 8 x 8 x 8",
        },
    ),
    "order": dict(
        title="Beyond the paper: what order costs",
        rows={
            "tuned_ema_restarts": "no map (EMA-VQ with restarts)",
            "tuned_hard": "map, hard, tau 0.1 (the paper's)",
            "tuned_gaussian": "map, Gaussian, width from 4 nodes to 0.6",
            "tuned_map": "map, Gaussian, width from 2 nodes to 0.7, 3 dimensions",
        },
    ),
}

for codes in SIZES:
    suffix = "" if codes == 512 else f"_{codes}"
    TABLES[f"quantizers{suffix}"] = dict(
        title=f"Beyond the paper: every quantiser with {codes:,} codes per position and the same recipe",
        rows={f"{name}{suffix}": label for name, label in QUANTIZER_ROWS.items()},
    )

PUBLISHED = {
    "1": {
        "cifar10": {
            "ema_n0_keep": ((148.8, 11.0), (13.5, 0.7)),
            "ema_keep": ((68.3, 0.8), (16.3, 1.4)),
            "ema_n0": ((52.1, 0.6), (6.8, 0.6)),
            "ema": ((51.9, 0.2), (5.4, 0.5)),
        },
    },
    "2": {
        "cifar10": {
            "ema": ((51.9, 0.2), (5.4, 0.5), (3.7, 0.5)),
            "hard": ((52.1, 0.2), (5.2, 0.6), (2.5, 0.5)),
            "exponential": ((51.8, 0.2), (5.2, 0.6), (3.0, 0.0)),
        },
        "imagenet": {
            "ema": ((23.0, 0.4), (15.2, 1.6), (8.4, 0.6)),
            "hard": ((23.5, 0.4), (13.6, 2.2), (7.4, 0.9)),
            "exponential": ((23.2, 0.4), (14.0, 1.4), (7.6, 0.6)),
        },
        "faces": {
            "ema": ((18.6, 1.0), (17.0, 1.0), (14.1, 1.4)),
            "hard": ((17.3, 0.1), (17.0, 1.6), (10.8, 1.3)),
            "exponential": ((17.5, 0.3), (17.8, 1.8), (11.8, 1.3)),
        },
    },
    "3": {
        "cifar10": {
            "ema_n0_keep": ((148.8, 11.0), (13.5, 0.7)),
            "hard_n0_keep": ((51.8, 0.2), (5.2, 0.6)),
            "ema_keep": ((68.3, 0.8), (16.3, 1.4)),
            "hard_keep": ((52.1, 0.3), (4.8, 0.9)),
            "ema_n0": ((52.1, 0.6), (6.8, 0.6)),
            "hard_n0": ((51.9, 0.2), (4.8, 0.6)),
            "ema": ((51.9, 0.2), (5.4, 0.5)),
            "hard": ((52.1, 0.2), (5.2, 0.6)),
        },
        "imagenet": {
            "ema_n0_keep": ((44.7, 2.6), (13.5, 0.7)),
            "hard_n0_keep": ((24.4, 1.3), (12.6, 0.9)),
            "ema_keep": ((27.9, 1.0), (21.2, 1.5)),
            "hard_keep": ((24.1, 1.3), (12.2, 1.3)),
            "ema_n0": ((23.6, 0.9), (15.4, 2.7)),
            "hard_n0": ((23.7, 0.7), (14.2, 1.6)),
            "ema": ((23.0, 0.4), (15.2, 1.6)),
            "hard": ((23.5, 0.4), (13.6, 2.2)),
        },
        "faces": {
            "ema_n0_keep": ((37.3, 1.2), (21.2, 3.9)),
            "hard_n0_keep": ((17.4, 0.4), (17.6, 3.6)),
            "ema_keep": ((30.1, 2.8), (22.6, 0.5)),
            "hard_keep": ((17.4, 0.2), (16.6, 1.5)),
            "ema_n0": ((18.0, 1.0), (17.6, 1.5)),
            "hard_n0": ((17.2, 0.1), (16.8, 1.9)),
            "ema": ((18.6, 1.0), (17.0, 1.0)),
            "hard": ((17.3, 0.1), (17.0, 1.6)),
        },
    },
    "4": {
        "cifar10": {
            "hard_line": ((52.0, 0.2), (5.3, 0.5), (3.1, 0.3)),
            "hard_tau1": ((52.1, 0.4), (4.7, 0.7), (2.6, 0.5)),
            "hard": ((52.0, 0.3), (4.9, 0.3), (2.4, 0.5)),
            "hard_tau0.01": ((52.1, 0.3), (5.5, 0.7), (3.0, 0.0)),
            "exponential_line": ((51.9, 0.4), (5.2, 0.4), (3.1, 0.3)),
            "exponential_tau1": ((51.9, 0.2), (5.3, 0.5), (3.3, 0.5)),
            "exponential": ((51.8, 0.3), (5.1, 0.3), (3.1, 0.3)),
            "exponential_tau0.01": ((51.7, 0.2), (5.4, 0.5), (3.6, 0.5)),
        },
        "faces": {
            "hard_line": ((17.4, 0.2), (15.8, 0.8), (10.8, 1.5)),
            "hard_tau1": ((17.4, 0.2), (18.0, 1.6), (11.4, 1.1)),
            "hard": ((17.3, 0.2), (18.0, 1.6), (12.4, 1.1)),
            "hard_tau0.01": ((17.6, 0.3), (17.0, 2.9), (12.4, 2.1)),
            "exponential_line": ((17.8, 0.5), (18.0, 2.7), (11.6, 1.3)),
            "exponential_tau1": ((18.3, 0.4), (16.4, 1.9), (11.8, 1.8)),
            "exponential": ((17.6, 0.2), (18.6, 2.1), (13.2, 0.8)),
            "exponential_tau0.01": ((17.5, 0.5), (18.4, 2.6), (11.8, 1.3)),
        },
    },
    "5": {
        "cifar10": {
            "gradient": ((69.4, 0.8), (14.3, 0.9)),
            "ema": ((51.9, 0.2), (5.4, 0.5)),
            "som_vae": ((51.7, 0.3), (7.3, 0.5)),
            "hard": ((52.1, 0.2), (5.2, 0.6)),
        },
    },
}
