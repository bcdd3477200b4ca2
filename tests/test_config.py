"""Configs: round trip through JSON text, differences, lengths in steps, and refused settings."""

import dataclasses
import json

import pytest
from helpers.latent_runs import CONFIG as LATENT_CONFIG

from ddpm_jax.config import (
    CONFIG_FORMAT,
    PARAMETERS_PER_PIXEL,
    VERSION,
    Checkpoint,
    Config,
    Log,
    Training,
    cadence_in_steps,
    config_from_json,
    config_to_json,
    differences,
)
from ddpm_jax.data import DataSource
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.huggingface import HuggingFace
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.latent_config import read_config
from ddpm_jax.models import Model
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.unet import UNet
from ddpm_jax.settings_json import KINDS, settings_classes
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

BASE = Config(
    model=UNet(image_size=8, channels=1, widths=(32,), attention=(True,)),
    data=Digits(),
    training=Training(steps=10),
)


def with_(**changes) -> Config:
    """BASE with some parts replaced."""
    return dataclasses.replace(BASE, **changes)


CONFIGS = [
    BASE,
    with_(
        model=ConvUNet(image_size=32, channels=3, attention_sizes=(8, 16)),
        data=Folder(path="images", max_corrupt_fraction=0.1),
    ),
    with_(
        model=dataclasses.replace(BASE.model, num_classes=10, label_dropout=0.1),
        sampling=Sampling(guidance_scale=2.0, guidance_interval=(1.0, 5.0), timesteps=(7.5, 3.0)),
    ),
    with_(
        model=BasicUNet(image_size=28, channels=1),
        sampling=Sampling(sampler="deis", steps=7, grid="inner_to_0", keep_eps=True),
    ),
    with_(
        data=Tfds(name="cifar10", flip=True),
        ema=Ema(decay=0.99, extra_decays=(0.5,)),
        log=Log(samples_every=3),
    ),
    with_(
        data=HuggingFace(path="a.parquet"),
        objective=Objective(schedule="squaredcos", target="v"),
    ),
    with_(
        model=dataclasses.replace(BASE.model, image_size=(8, 16), channels=5),
        data=Arrays(path="x.npz", scaling="deviation", statistics=(0.0, 1.5)),
        sampling=Sampling(clip_x0=False),
    ),
    with_(sampling=Sampling(options={"variance": "fixed_large", "clip_sample": 1.0}, steps=50)),
    with_(
        sampling=Sampling(options={"clip_sample": None}),
        checkpoint=Checkpoint(every=5, keep_every=20),
    ),
    with_(
        optimizer=Optimizer(learning_rate=1e-4, name="adamw", clip_norm=1.0),
        training=Training(epochs=3),
    ),
    with_(
        parallel=Parallel(route="jit", cpu_devices=2, fsdp=2),
        training=Training(steps=3, init_from="owner/name"),
    ),
    LATENT_CONFIG.autoencoder_config,
    LATENT_CONFIG,
]


def json_round_trip(config: Config) -> dict:
    """A config as JSON, written to text and read back."""
    return json.loads(json.dumps(config_to_json(config)))


def test_every_kind_of_config_survives_json_text():
    for config in CONFIGS:
        restored = read_config(json_round_trip(config))
        assert restored == config, config
        for field in dataclasses.fields(config):
            ours = getattr(restored, field.name)
            theirs = getattr(config, field.name)
            assert type(ours) is type(theirs), (field.name, config)
        assert differences(restored, config) == [], config


def test_the_configs_above_have_every_kind_of_model_and_data():
    kinds = {Model: "model", ImageAutoencoder: "model", DataSource: "data"}
    assert kinds.keys() == KINDS.keys()
    for base, field in kinds.items():
        values = [config for config in CONFIGS if isinstance(getattr(config, field), base)]
        tried = {json_round_trip(config)[field]["kind"] for config in values}
        assert tried == set(settings_classes(base)), base


def test_json_holds_the_format_and_kinds_by_their_command_line_names():
    value = json_round_trip(with_(data=Tfds(name="mnist")))
    assert value["format"] == CONFIG_FORMAT == 3
    assert value["ddpm_jax"] == VERSION
    assert (value["model"]["kind"], value["data"]["kind"]) == ("unet", "tfds")
    assert value["model"]["widths"] == [32]


def test_only_settings_in_the_package_have_a_name_in_json():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Digits):
        pass

    message = r"^Mine is not in ddpm_jax\.data, so JSON has no name for it: define it in"
    with pytest.raises(ValueError, match=message):
        config_to_json(with_(data=Mine()))


OF_VERSION_0_1 = {
    "type": "config.Config",
    "model": {"type": "models.unet.UNet", "image_size": 8},
}


@pytest.mark.parametrize(
    ("value", "version", "written"),
    [
        (OF_VERSION_0_1, "0.1", "1"),
        (config_to_json(BASE) | {"format": 4, "ddpm_jax": "0.9.1"}, "0.9.1", "4"),
        (config_to_json(BASE) | {"format": 2, "ddpm_jax": "0.2.0"}, "0.2.0", "2"),
        (
            config_to_json(BASE) | {"format": "3" * 1000, "ddpm_jax": "0.9.1" + 1000 * "0"},
            r"0\.9\.10{15}",
            "3{20}",
        ),
    ],
)
def test_another_format_is_refused_with_the_version_that_wrote_it(value, version, written):
    message = (
        rf"^ddpm_jax {version} wrote it in format {written}, "
        rf"and ddpm_jax {VERSION} reads only format {CONFIG_FORMAT}$"
    )
    with pytest.raises(ValueError, match=message):
        config_from_json(value)


def changed(**changes) -> dict:
    """The JSON of BASE with some values replaced."""
    return config_to_json(BASE) | changes


def without(name: str) -> dict:
    """The JSON of BASE without one setting."""
    return {key: value for key, value in config_to_json(BASE).items() if key != name}


DIGITS = config_to_json(BASE)["data"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "it does not hold a JSON object"),
        ({}, "it does not state its format"),
        (changed(sampling={"options": None}), "sampling.options must be an object, not None"),
        (changed(model={"kind": "unett"}), "Unknown model 'unett': choose one of unet, basic_unet"),
        (
            changed(model={"image_size": 8}),
            "Unknown model None: choose one of basic_unet, conv_unet",
        ),
        (changed(model={"kind": ["unet"]}), r"Unknown model \['unet'\]: choose one of "),
        (changed(data=DIGITS | {"kind": "os.system"}), "Unknown data 'os.system': choose one of "),
        (
            changed(data=DIGITS | {"kind": "ddpm_jax.data.digits"}),
            "Unknown data .*: choose one of ",
        ),
        (changed(data=DIGITS | {"kind": "_tfds_without_tf"}), "Unknown data .*: choose one of "),
        (changed(data="digits"), "data must be an object, not digits"),
        (changed(ema={"size": 1, "colour": "red"}), r"unknown settings: ema\.colour, ema\.size$"),
        (changed(ema={"kind": "ema"}), r"unknown settings: ema\.kind$"),
        (changed(colour="red"), "unknown settings: colour$"),
        (
            changed(model={"kind": "unet", "channels": 1}),
            r"settings are missing: model\.image_size$",
        ),
        (without("training"), "settings are missing: training$"),
        (changed(ema={"decay": 2.0}), r"ema\.decay must be in \[0, 1\), not 2"),
    ],
)
def test_invalid_json_is_refused_by_the_name_of_the_setting(value, message):
    with pytest.raises(ValueError, match=message) as error:
        config_from_json(value)
    assert "\n" not in str(error.value)


def test_latents_have_the_aspect_ratio_of_their_images():
    run = LATENT_CONFIG.autoencoder
    wide = dataclasses.replace(run, model=dataclasses.replace(run.model, image_size=(8, 16)))
    model = dataclasses.replace(LATENT_CONFIG.model, image_size=(4, 8))
    config = dataclasses.replace(LATENT_CONFIG, autoencoder=wide, model=model)
    assert config.model.unet.sample_size == (4, 8)
    assert config.autoencoder.model.net.sample_size == (8, 16)
    assert read_config(json.loads(json.dumps(config_to_json(config)))) == config
    with pytest.raises(ValueError, match=r"latents of \(4, 8, 4\), but the network takes"):
        dataclasses.replace(LATENT_CONFIG, autoencoder=wide)


def test_averages_are_named_by_their_decay_or_length():
    ema = Ema(decay=0.99, extra_decays=(0.999,), power=(0.05, 0.10))
    assert ema.decays == {"ema": 0.99, "ema_0.999": 0.999}
    assert ema.power_averages == {"power_0.05": 0.05, "power_0.1": 0.1}


def test_a_setting_missing_from_json_has_its_default():
    assert config_from_json(changed(ema={"decay": 0.9})).ema == Ema(decay=0.9)
    assert config_from_json(without("log")) == BASE


def test_differences_are_dotted_names():
    other = with_(
        optimizer=Optimizer(learning_rate=1e-5),
        data=Tfds(name="mnist"),
        sampling=Sampling(options={"clip_sample": 1.0}),
    )
    names = differences(BASE, other)
    expected = {"optimizer.learning_rate", "data.name", "data.kind", "sampling.options.clip_sample"}
    assert expected <= set(names)
    assert all(name.startswith("data.") for name in set(names) - expected)
    assert differences(other, BASE) == names
    assert differences(BASE, BASE) == []
    wider = with_(model=dataclasses.replace(BASE.model, widths=(64,)))
    assert differences(BASE, wider) == ["model.widths"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(steps=1, batch_size=0), "training.batch_size must be at least 1, not 0"),
        (lambda: Training(steps=0), "training.steps must be at least 1, not 0"),
        (lambda: Training(), r"is missing: give training.steps or training.epochs\.$"),
        (
            lambda: Training(steps=1, batch_size=10, accumulation=4),
            "batch of 10 does not divide into 4 micro-batches",
        ),
        (lambda: Training(steps=1, seed=-1), "training.seed must be in"),
        (lambda: Parallel(cpu_devices=0), "parallel.cpu_devices must be at least 1"),
        (lambda: Parallel(fsdp=0), "parallel.fsdp must be at least 1"),
        (
            lambda: Optimizer(learning_rate=-1e-3),
            "optimizer.learning_rate must be positive, not -0.001",
        ),
        (lambda: Optimizer(floor=1.0), "optimizer.floor must be in"),
        (lambda: Optimizer(warmup_steps=-1), "optimizer.warmup_steps must be at least 0"),
        (lambda: Optimizer(weight_decay=-1.0), "optimizer.weight_decay must be at least 0"),
        (lambda: Optimizer(clip_norm=0.0), "optimizer.clip_norm must be positive"),
        (lambda: Ema(decay=1.0), "ema.decay must be in"),
        (lambda: Ema(extra_decays=(0.5, 1.0)), "ema.extra_decays must be in"),
        (lambda: Ema(power=(0.05, 0.3)), "ema.power must be above 0 and at most 0.2887, not 0.3"),
        (lambda: Ema(extra_decays=(0.5, 0.5)), "ema.extra_decays names an average twice"),
        (lambda: Ema(snapshots_every=0), "ema.snapshots_every must be at least 1"),
        (lambda: Checkpoint(every=0), "checkpoint.every must be at least 1"),
        (lambda: Checkpoint(keep_last=0), "checkpoint.keep_last must be at least 1"),
        (lambda: Log(every=0), "log.every must be at least 1"),
        (lambda: Log(samples=-1), "log.samples must be at least 0"),
        (lambda: Log(samples_every_epochs=0), "log.samples_every_epochs must be at least 1"),
        (lambda: Objective(timesteps=0), "timesteps must be at least 1"),
        (lambda: Objective(beta_start=0.03), "betas must satisfy"),
        (lambda: Objective(zero_terminal_snr=True), "use target x0 or v"),
        (
            lambda: Objective(zero_terminal_snr=True, target="v", timesteps=1),
            "need timesteps of at least 2",
        ),
        (
            lambda: Objective(schedule="flow", target="flow", timesteps=1),
            "need timesteps of at least 2",
        ),
        (
            lambda: with_(model=dataclasses.replace(BASE.model, time_embedding="fourier")),
            "fourier takes the logarithm of t, which starts at 0",
        ),
        (
            lambda: with_(
                model=dataclasses.replace(BASE.model, time_embedding="learned", timesteps=100)
            ),
            "embeds 100 timesteps, but the objective has 1000: raise model.timesteps",
        ),
        (
            lambda: with_(
                model=dataclasses.replace(BASE.model, time_embedding="learned", timesteps=1000),
                objective=Objective(timestep_sampling="lognormal"),
            ),
            "needs whole timesteps: set objective.timestep_sampling to uniform or importance",
        ),
        (
            lambda: dataclasses.replace(LATENT_CONFIG, sampling=Sampling()),
            r"Latents, .* exceed \[-1, 1\], .* set clip_x0 to False .*leave out dynamic_threshold",
        ),
        (
            lambda: dataclasses.replace(
                LATENT_CONFIG, sampling=Sampling(clip_x0=False, dynamic_threshold=0.9)
            ),
            "Latents, .* to which sampling clips",
        ),
        (lambda: Objective(gamma=5.0), "set weighting to min_snr"),
        (lambda: Objective(sigma_data=0.0), "sigma_data must be positive, not 0.0"),
        (lambda: with_(sampling=Sampling(steps=1001)), "T = 1000, not 1001"),
        (
            lambda: with_(
                sampling=Sampling(steps=11), objective=Objective(timesteps=10, beta_end=0.9)
            ),
            "T = 10, not 11",
        ),
        (lambda: with_(sampling=Sampling(steps=0)), "steps must be .* not 0"),
        (lambda: Sampling(sampler="nope"), r"Unknown sampler 'nope': choose one of .*ddpm"),
        (
            lambda: Sampling(options={"speed": 9.0}),
            r"Sampler ddpm has no option 'speed'; it has: variance, clip_sample",
        ),
    ],
)
def test_invalid_settings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_lengths_are_in_steps():
    """Steps override epochs, and the steps of an epoch are rounded up."""
    steps = with_(training=Training(steps=10, epochs=3, batch_size=8))
    epochs = with_(training=Training(epochs=3, batch_size=8))
    assert steps.steps_per_epoch(17) == 3
    assert steps.total_steps(17) == 10
    assert epochs.total_steps(17) == 9
    assert epochs.total_steps(16) == 6
    assert Training(steps=1, batch_size=12, accumulation=3).micro_batch_size == 4


def test_cadences_are_in_steps():
    assert cadence_in_steps(5, 2, 100, 150) == 5
    assert cadence_in_steps(None, 2, 100, 150) == 200
    assert cadence_in_steps(None, 2, 30, 150) == 180
    assert cadence_in_steps(None, None, 100, 150) is None


def test_epochs_of_a_few_steps_are_not_saved_one_by_one():
    small = with_(training=Training(epochs=3000, batch_size=128))
    assert small.steps_between_saves(60) == 250
    assert small.steps_between_saves(1797) == 255
    assert small.steps_between_saves(50000) == 391
    every_step = dataclasses.replace(small, checkpoint=Checkpoint(every=1))
    assert every_step.steps_between_saves(60) == 1


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.training.steps = 11
    assert hash(BASE.model) == hash(dataclasses.replace(BASE.model))


@pytest.mark.parametrize("learned_variance", [False, True])
def test_network_and_objective_must_agree_on_a_learned_variance(learned_variance):
    model = UNet(
        image_size=8,
        channels=1,
        widths=(8,),
        attention=(False,),
        groups=4,
        learned_variance=learned_variance,
    )
    learned = Objective(variance="learned_range", loss_kind="hybrid")
    fixed = Objective()
    right, wrong = (learned, fixed) if learned_variance else (fixed, learned)
    Config(model=model, data=Digits(), training=Training(steps=1), objective=right)
    message = r"model.learned_variance and objective.variance .* go together"
    with pytest.raises(ValueError, match=message):
        Config(model=model, data=Digits(), training=Training(steps=1), objective=wrong)


def test_a_learned_variance_leaves_the_sampling_of_the_config_as_given():
    model = dataclasses.replace(BASE.model, learned_variance=True)
    learned = with_(model=model, objective=Objective(variance="learned_range", loss_kind="hybrid"))
    assert learned.sampling == BASE.sampling
    with pytest.raises(ValueError, match="was not trained for variance learned_range"):
        with_(sampling=Sampling(options={"variance": "learned_range"}))


def test_a_device_has_two_cores_above_the_limit_of_parameters_per_pixel():
    def cores(**training):
        return with_(training=Training(steps=1, **training)).cores_per_device()

    maximum = BASE.model.parameter_count() // (PARAMETERS_PER_PIXEL * BASE.model.image_size**2)
    assert cores(batch_size=maximum) == 2
    assert cores(batch_size=maximum + 1) == 1
    assert cores(batch_size=2 * maximum, accumulation=2) == 2
