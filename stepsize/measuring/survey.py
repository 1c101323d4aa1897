"""One walk over a model, made anew for each measurement, so that nothing is sought twice or outdated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A model's modules, parameters and buffers as they are now; what is shared goes by its first name."""

    modules: tuple[tuple[str, nn.Module], ...]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    tables: frozenset[str]
    """Names of the weights of every `nn.Embedding` and `nn.EmbeddingBag`."""
    shared: bool
    """Whether some parameter or buffer has several names."""

    @classmethod
    def of(cls, model: nn.Module) -> Survey:
        modules = tuple(model.named_modules())
        parameters: dict[str, nn.Parameter] = {}
        buffers: dict[str, Tensor] = {}
        name_of: dict[int, str] = {}
        shared, tables = False, set()
        for path, module in modules:
            where = f"{path}." if path else ""
            for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
                for key, value in held.items():
                    if value is None:
                        continue
                    if id(value) in name_of:
                        shared = True
                    else:
                        name_of[id(value)] = f"{where}{key}"
                        found[f"{where}{key}"] = value  # pyright: ignore[reportArgumentType]
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                tables.add(id(module.weight))
        return cls(
            modules=modules,
            parameters=parameters,
            buffers=buffers,
            tables=frozenset(name for name, parameter in parameters.items() if id(parameter) in tables),
            shared=shared,
        )
