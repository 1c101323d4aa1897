"""The [model] and [optimizer] sections of a configuration; importing them costs nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from trainer.learner.factory import found_in

TrainedIn = Literal["float32", "tf32", "bfloat16"]

SHIPPED_MODELS = ("dlrm", "dcn_v2", "deepfm")
"""What `model.factory` accepts by name."""

PRESETS_FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `[model]` section. What is not given comes from the preset."""

    preset: str = "dlrm-tiny"
    """Named sizes: "dlrm-small" (AlgoPerf's, 539M parameters) or "dlrm-tiny" (4M, for one machine)."""
    factory: str = "dlrm"
    """dlrm, dcn_v2 or deepfm, or a model of your own: "my_module:make" or "path/file.py:make". It is called with
    dense_features, sparse_features, table_rows and [model.options] as keyword arguments and returns a Module that maps
    dense (R, D) and ids (S, R) to logits (R,). If that has `initialize(generator)`, its weights come from there."""
    factory_folder: str | None = None
    """Where the factory's module or file lies; by default the current directory, the configuration file's folder, or
    (modules) wherever Python finds it. The run keeps the place."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the model, e.g. cross_layers = 3, structure = "parallel", low_rank = 32 (dcn_v2) or
    first_order = false (deepfm)."""
    tables: Literal["shared", "per_feature"] = "shared"
    """One table that all sparse features share, or one for each, of as many rows as the feature has buckets, but
    `table_rows` at most. A model of your own is called with a tuple of their rows then."""
    table_rows: int | None = None
    """Rows of the one embedding table that all sparse features share, or the most that a feature's own has."""
    feature_rows: tuple[int, ...] | dict[str, int] | None = None
    """With tables = "per_feature": the most rows of features' own tables instead of `table_rows`, one number for each
    sparse column in order, or some by column name, e.g. feature_rows = { C3 = 1000 }. A bucket b is row
    int32(float32(b)) mod this number."""
    embedding_dim: int | None = None
    """Width of an embedding, and of the bottom MLP's output; not for a model of your own, nor are those below."""
    bottom: tuple[int, ...] | None = None
    """Widths of the bottom MLP's layers (dlrm alone); the last must equal `embedding_dim`."""
    top: tuple[int, ...] | None = None
    """Widths of the top MLP's layers, of dcn_v2's and deepfm's MLP; the last must be 1."""
    dropout: float | None = None
    """Share of the last hidden layer of the top MLP that is dropped while training."""
    precision: TrainedIn = "float32"
    """Of the matrix products in training. tf32: factors rounded to 11 bits on GPUs that can, elsewhere float32.
    bfloat16: autocast, for processors that multiply it (GPUs, AMX, AVX-512 BF16); slower on others. Weights, tables,
    loss and optimizer stay float32; α* is measured in the same precision, and evaluations are in float32 always."""

    def __post_init__(self) -> None:
        for name in ("table_rows", "embedding_dim"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise ValueError(f"model.{name} is {value}; give a whole number from 1 to 2³¹ − 1")
        self._check_feature_rows()
        for name in ("bottom", "top"):
            widths = getattr(self, name)
            if widths is not None and (not widths or min(widths) < 1):
                raise ValueError(f"model.{name} is {list(widths)}; give at least one width, all positive")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}; give a share from 0 to below 1")
        if ":" not in self.factory and self.factory not in SHIPPED_MODELS:
            raise ValueError(
                f"model.factory is {self.factory!r}; give one of {', '.join(SHIPPED_MODELS)}, "
                '"module:name" or "path/file.py:name"'
            )

    def _check_feature_rows(self) -> None:
        rows = self.feature_rows
        if rows is None:
            return
        if self.tables != "per_feature":
            raise ValueError(
                f"model.feature_rows is given and model.tables is {self.tables!r}; set that to 'per_feature', or leave "
                "model.feature_rows out"
            )
        named = rows.items() if isinstance(rows, dict) else enumerate(rows, 1)
        for name, value in named:
            if not 1 <= value < 2**31:
                raise ValueError(f"model.feature_rows: {name} has {value}; give a whole number from 1 to 2³¹ − 1")

    def of_columns(self, sparse: Sequence[str]) -> ModelConfig:
        """The same with `feature_rows`, if there are any, for each of the sparse columns in order.

        Raises: ValueError for a name that is none of theirs, or another number of them.
        """
        rows = self.feature_rows
        if rows is None:
            return self
        if not isinstance(rows, dict):
            if len(rows) != len(sparse):
                raise ValueError(
                    f"model.feature_rows has {len(rows)} numbers and the data {len(sparse)} sparse columns; give one "
                    "each, or some by name: { COLUMN = ROWS }"
                )
            return self
        for name in rows:
            if name not in sparse:
                near = get_close_matches(name, sparse, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(sparse)}"
                raise ValueError(f"model.feature_rows: {name!r} is no sparse column of the data; {meant}")
        others = self.resolved().table_rows
        assert others is not None
        return replace(self, feature_rows=tuple(rows.get(name, others) for name in sparse))

    @property
    def own(self) -> bool:
        """Whether the model is one of the user's."""
        return ":" in self.factory

    def resolved(self) -> ModelConfig:
        """The same with every None filled from the preset, and the place of the factory.

        If `embedding_dim` is given and `bottom` is not, the preset's bottom MLP ends in that width.

        Raises: ValueError for an unknown preset or sizes that do not fit one another.
        """
        values = load_preset(self.preset)["model"]
        given = {name: getattr(self, name) for name in values if getattr(self, name) is not None}
        merged = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()} | given
        if "embedding_dim" in given and "bottom" not in given:
            merged["bottom"] = (*merged["bottom"][:-1], merged["embedding_dim"])
        if merged["bottom"][-1] != merged["embedding_dim"]:
            raise ValueError(
                f"model.bottom ends in {merged['bottom'][-1]} and model.embedding_dim is {merged['embedding_dim']}; "
                "make them equal, the interaction multiplies both"
            )
        if merged["top"][-1] != 1:
            raise ValueError(f"model.top ends in {merged['top'][-1]}; end it in 1, for the logit")
        if self.own:
            merged["factory"], merged["factory_folder"] = found_in("model.factory", self.factory, self.factory_folder)
        return replace(self, **merged)


def preset_names() -> list[str]:
    """The names that `model.preset` accepts."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_preset(name: str) -> dict[str, dict[str, Any]]:
    """The preset's TOML: section → key → value, with at least `[model]` and `[optimizer]`.

    Raises: ValueError for a name that is not one of `preset_names()`.
    """
    if name not in preset_names():
        raise ValueError(f"model.preset is {name!r}; known presets are {', '.join(preset_names())}")
    return tomllib.loads((PRESETS_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


OWN = ("nadamw", "muon")
"""Optimizers of this project."""

OF_TORCH = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop"),
    "sgd",
)
"""Classes of torch.optim in lower case, written down so that a name can be checked without importing torch."""

PACKAGED = {
    "schedulefree_adamw": ("schedulefree", "AdamWScheduleFree"),
    "schedulefree_radam": ("schedulefree", "RAdamScheduleFree"),
    "schedulefree_sgd": ("schedulefree", "SGDScheduleFree"),
    "prodigy": ("prodigyopt", "Prodigy"),
    "dadapt_adagrad": ("dadaptation", "DAdaptAdaGrad"),
    "dadapt_adam": ("dadaptation", "DAdaptAdam"),
    "dadapt_adan": ("dadaptation", "DAdaptAdan"),
    "dadapt_lion": ("dadaptation", "DAdaptLion"),
    "dadapt_sgd": ("dadaptation", "DAdaptSGD"),
    "dog": ("dog", "DoG"),
    "ldog": ("dog", "LDoG"),
}
"""Our name → module and class, of what the extra `optimizers` installs."""

FIND_THEIR_LENGTH = (
    "prodigy",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "dog",
    "ldog",
)
"""Of these: optimizers whose steps are as long as they find right, the rate being a factor on that."""

REFUSED = {
    "lbfgs": "evaluates the loss several times a step through a closure, which the training step does not give",
    "sparseadam": "needs sparse gradients, and the table's are dense",
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The `[optimizer]` section. What is not given comes from the preset (for its own optimizer) or the optimizer."""

    name: str = "nadamw"
    """nadamw, any class of torch.optim in lower case, or one of the extra `optimizers`, e.g. schedulefree_adamw."""
    factory: str | None = None
    """An optimizer of your own instead: "my_module:make" or "path/file.py:make", called with the list of parameters,
    with what is given of lr, betas, eps and weight_decay, and with [optimizer.options]."""
    factory_folder: str | None = None
    """Where that module or file lies, found as `model.factory_folder` is."""
    lr: float | None = None
    """Learning rate: the peak of the schedule."""
    betas: tuple[float, float] | None = None
    """Decay rates of the first and second moment, if the optimizer has them."""
    eps: float | None = None
    """Added to the denominator, if the optimizer has one."""
    weight_decay: float | None = None
    """Decay λ; decoupled from the gradient in nadamw and adamw."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any further keyword argument of the optimizer, e.g. momentum = 0.9."""
    table: Literal["auto", "lazy", "dense"] = "auto"
    """How embedding tables are moved: "dense" moves every row at every step; "lazy" makes a row's steps when the row is
    looked at, which gives the same weights, bit for bit, and never makes the table's gradient whole. lazy needs nadamw,
    on the CPU or by Triton on CUDA, where it adds up gradients in another order. auto is lazy for large tables on the
    CPU, and dense for all others. A run may go on with another value (gains: `python -m tests.bench table`)."""
    average: Literal["none", "ema", "polyak"] | None = None
    """What is evaluated: the weights themselves, their exponential moving average, or their mean since the start. By
    default none; ema where stepsize.policy = auto trains without a budget, and so without a cool-down."""
    average_decay: float = 0.99
    """Share of the old average that survives one step of "ema"."""

    def __post_init__(self) -> None:
        if self.lr is not None and not 0.0 <= self.lr < float("inf"):
            raise ValueError(f"optimizer.lr is {self.lr}; give a finite number from 0")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"optimizer.average_decay is {self.average_decay}; give a number from 0 to below 1")
        _check_name(self.name)
        if self.factory is not None and self.table == "lazy":
            raise ValueError('optimizer.table is "lazy", which optimizer.factory cannot be; set it to "auto"')
        if self.table == "lazy" and self.name.lower() != "nadamw":
            raise ValueError(
                f'optimizer.table is "lazy", but only nadamw can make the steps of a row later, and optimizer.name is '
                f'{self.name!r}; set optimizer.table = "auto"'
            )

    @property
    def finds_its_length(self) -> bool:
        """Whether the optimizer makes its steps as long as it finds right, the rate being a factor on that."""
        return self.factory is None and self.name.lower() in FIND_THEIR_LENGTH

    def resolved(self, preset: str) -> OptimizerConfig:
        """The same with every None that `preset` has a value for filled, if the preset is for this optimizer.

        Raises: ValueError for an unknown preset.
        """
        values = load_preset(preset)["optimizer"]
        if self.factory is not None:
            factory, folder = found_in("optimizer.factory", self.factory, self.factory_folder)
            return replace(self, factory=factory, factory_folder=folder)
        if values["name"] != self.name.lower():
            return self
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})


def beside(section: ModelConfig | OptimizerConfig, folder: Path) -> Any:
    """The section with the place of its factory, if that is only to be found in `folder`, that of its file."""
    if section.factory is None or ":" not in section.factory or section.factory_folder is not None:
        return section
    key = "model.factory" if isinstance(section, ModelConfig) else "optimizer.factory"
    try:
        factory, place = found_in(key, section.factory, None, folder)
    except ValueError:
        return section  # refused where it is used; another may be given by then
    return replace(section, factory=factory, factory_folder=place)


def optimizer_names() -> list[str]:
    """Every name that `optimizer.name` accepts, whether its package is installed or not."""
    return sorted((*OWN, *OF_TORCH, *PACKAGED))


def _check_name(name: str) -> None:
    key = name.lower()
    if key in REFUSED:
        raise ValueError(f"optimizer.name is {name!r}, which {REFUSED[key]}; choose another, e.g. nadamw")
    if key not in optimizer_names():
        raise ValueError(f"optimizer.name is {name!r}; known are {', '.join(optimizer_names())}")
    if key in PACKAGED and find_spec(PACKAGED[key][0]) is None:
        raise ValueError(
            f"optimizer.name is {name!r}, but the package {PACKAGED[key][0]!r} is not installed; "
            "install the extra: pip install 'alphastream[optimizers]'"
        )
